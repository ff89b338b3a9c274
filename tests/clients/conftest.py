"""The official clients, each in an environment of its own, and a real server for them with one finished job."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import server as servers
from server import Server

CACHE = Path(__file__).parents[2] / ".cache" / "clients"
INSTALL_TIMEOUT_S = 600
COMMAND_TIMEOUT_S = 120
JOB_TIMEOUT_S = 300


@dataclass(frozen=True)
class Client:
    """An installed client, pointed at a server."""

    folder: Path  # where its commands run
    environment: Path  # its virtual environment
    settings: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the client's environment."""
        return subprocess.run(
            [str(self.environment / "bin" / command[0]), *command[1:]],
            cwd=self.folder, env=self.settings, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip

    def tg(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the client's command line; it must succeed."""
        done = self.run("tg", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def tg_json(self, *arguments: str) -> Any:
        """Run the client's command line and return its JSON."""
        return json.loads(self.tg(*arguments, "--json").stdout)

    def script(self, text: str, *arguments: str) -> Any:
        """Run Python with ``client`` made, and return what it assigned to ``answer``."""
        program = (
            "import json, sys\nfrom together import Together\nclient = Together()\nanswer = None\n"
            + textwrap.dedent(text)
            + "\nprint(json.dumps(answer, default=str))\n"
        )
        done = self.run("python", "-c", program, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def with_key(self, api_key: str) -> Client:
        """Return the same client with another key."""
        return Client(self.folder, self.environment, self.settings | {"TOGETHER_API_KEY": api_key})


def install(requirement: str) -> Path:
    """Return a virtual environment that holds the client, made when it is not there yet."""
    name = requirement.replace("==", "-")
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / name
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes run side by side
        if not (folder / "complete").exists():
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(folder)],
                [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement],
            ):
                subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S)
            (folder / "complete").touch()
    return folder


def make_client(requirement: str, server: Server, folder: Path, *, base_url: str) -> Client:
    """Return a client of this server whose home is a new folder and which calls nobody else."""
    home = folder / "home"
    home.mkdir(parents=True)
    settings = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "TOGETHER_BASE_URL": base_url,
        "TOGETHER_API_KEY": server.api_key,
        "TOGETHER_TELEMETRY_DISABLED": "1",
        "TOGETHER_DISABLE_VERSION_CHECK": "1",
        "HTTPS_PROXY": "http://127.0.0.1:9",  # whoever would be called all the same is not reached
    }
    return Client(folder, install(requirement), settings)


@pytest.fixture(scope="session")
def connect_client(tmp_path_factory) -> Callable[..., Client]:
    """How to make a client of a server of a test's own."""

    def connect(requirement: str, server: Server, *, base_url: str) -> Client:
        return make_client(requirement, server, tmp_path_factory.mktemp("client"), base_url=base_url)

    return connect


@pytest.fixture(scope="session")
def running_server(tmp_path_factory) -> Iterator[Server]:
    """``luthier serve`` on a new home."""
    with servers.running(tmp_path_factory.mktemp("clients") / "home") as server:
        yield server


@pytest.fixture(scope="session")
def together(running_server, tmp_path_factory) -> Client:
    """The current client."""
    folder = tmp_path_factory.mktemp("together-3")
    return make_client("together==3.1.1", running_server, folder, base_url=running_server.base_url)


@pytest.fixture(scope="session")
def old_together(running_server, tmp_path_factory) -> Client:
    """The client's first generation, whose base URL holds the version."""
    folder = tmp_path_factory.mktemp("together-1")
    return make_client("together==1.5.35", running_server, folder, base_url=f"{running_server.base_url}/v1")


def write_rows(path: Path, count: int) -> Path:
    """Write a conversation data set."""
    rows = [
        {"messages": [{"role": "user", "content": f"{n} plus 1"}, {"role": "assistant", "content": f"{n + 1}."}]}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class Inputs:
    """What was uploaded, and where it came from."""

    training_path: Path
    training_file: str
    validation_file: str


@pytest.fixture(scope="session")
def inputs(together) -> Inputs:
    """A training and a validation file, uploaded by the client's command line."""
    training = write_rows(together.folder / "train.jsonl", 24)
    validation = write_rows(together.folder / "validation.jsonl", 6)
    ids = [together.tg("files", "upload", str(path)).stdout.split()[-1] for path in (training, validation)]
    return Inputs(training, *ids)


@pytest.fixture(scope="session")
def long_data(together) -> Path:
    """A training file of 2,000 rows: 20 epochs of single rows run until they are cancelled."""
    return write_rows(together.folder / "long.jsonl", 2000)


@dataclass(frozen=True)
class FinishedJob:
    """A job that ran to its end, and what the estimate had said."""

    id: str
    estimate: dict[str, Any]


@pytest.fixture(scope="session")
def finished_job(running_server, together, inputs) -> FinishedJob:
    """A LoRA job made by the SDK that has an evaluation and an intermediate checkpoint, run to its end."""
    settings = {
        "training_file": inputs.training_file, "validation_file": inputs.validation_file, "model": "luthier/tiny",
        "n_epochs": 2, "n_evals": 1, "n_checkpoints": 2, "batch_size": 1, "suffix": "clients",
    }  # fmt: skip
    answer = together.script(
        """
        settings = json.loads(sys.argv[1])
        priced = {name: settings[name] for name in ("training_file", "validation_file", "model", "n_epochs", "n_evals")}
        estimate = client.fine_tuning.estimate_price(**priced)
        job = client.fine_tuning.create(**settings, lora=True, lora_r=4)
        answer = {"estimate": estimate.to_dict(), "id": job.id, "price": job.total_price, "status": job.status}
        """,
        json.dumps(settings),
    )
    assert answer["price"] == round(answer["estimate"]["estimated_total_price"] * 1e9)
    wait_for_end(running_server, answer["id"])
    return FinishedJob(answer["id"], answer["estimate"])


def wait_for_end(server: Server, job_id: str) -> str:
    """Follow the job's stream to its end and return its last state."""
    status = None
    with httpx.stream(
        "GET",
        f"{server.base_url}/api/fine-tunes/{job_id}/stream",
        headers={"Authorization": f"Bearer {server.api_key}"},
        timeout=JOB_TIMEOUT_S,
    ) as response:
        for line in response.iter_lines():
            if line.startswith("data: ") and '"status"' in line:
                status = json.loads(line.removeprefix("data: "))["status"]
    assert status is not None
    return status


@pytest.fixture(scope="session")
def other_project_key(running_server) -> str:
    """A key of another project of the same server; made in its database, for no route makes projects yet."""
    from luthier import home as home_dir
    from luthier.accounts import service as accounts
    from luthier.clock import SystemClock
    from luthier.db import Database
    from luthier.settings import Settings

    settings = Settings(home=running_server.home)
    database = Database(settings.resolved_database_url)
    now = SystemClock().now()
    with database.transaction() as tx:
        organization_id = accounts.create_organization(tx, name="Other", now=now)
        project_id = accounts.create_project(tx, organization_id=organization_id, name="Other", slug="other", now=now)
        _, secret = accounts.create_key(
            tx, project_id=project_id, name="other", is_admin=False, expires_at=None,
            master_key=home_dir.prepare(settings), now=now,
        )  # fmt: skip
    database.dispose()
    return secret
