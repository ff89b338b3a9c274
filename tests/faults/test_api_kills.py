"""An API that dies while it takes a file or a job: what it acknowledged is there, what it did not can be sent again."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest

from luthier import faults
from server import Server, start_server

DEATHS_MAX = 40
TIMEOUT_S = 30
POINTS = (
    "storage.before_rename", "storage.after_rename", "transaction.before_commit", "transaction.after_commit",
    "create.before_commit",
)  # fmt: skip
DIED_AT_START = f"serve ended with {faults.EXIT_CODE}"


@dataclass
class Order:
    """One file and the job on it: what a client sends, and what it was told so far."""

    content: bytes
    upload_url: str | None = None  # path and query: another server process answers at another port
    file_id: str | None = None
    is_uploaded: bool = False
    create_tries: int = 0
    job_id: str | None = None

    def go_on(self, client: httpx.Client) -> None:
        """Do the next steps until all is acknowledged. Raises httpx.TransportError when the server dies."""
        if self.upload_url is None:
            form = {"purpose": "fine-tune", "file_name": "train.jsonl", "file_type": "jsonl"}
            announced = client.post("/v1/files", data=form)
            assert announced.status_code == 302, announced.text
            self.upload_url = urlsplit(announced.headers["Location"])._replace(scheme="", netloc="").geturl()
            self.file_id = announced.headers["X-Together-File-Id"]
        if not self.is_uploaded:
            assert client.put(self.upload_url, content=self.content).status_code == 200
            self.is_uploaded = True
        if self.job_id is None:
            self.create_tries += 1
            body = {"model": "luthier/tiny", "training_file": self.file_id}
            # No Idempotency-Key: an official client says in this way that it did not get its answer.
            retried = {"X-Stainless-Retry-Count": str(self.create_tries - 1)}
            created = client.post("/v1/fine-tunes", json=body, headers=retried)
            assert created.status_code == 200, created.text
            self.job_id = created.json()["id"]

    def take_what_is_there(self, client: httpx.Client) -> None:
        """Look whether the upload whose answer was lost arrived. What was acknowledged must be there."""
        if self.file_id is None:
            return
        content = client.get(f"/v1/files/{self.file_id}/content")
        assert content.status_code == 200 or not self.is_uploaded
        if content.status_code == 200:
            assert content.content == self.content
            self.is_uploaded = True
        else:
            assert content.json()["error"]["code"] == "file_incomplete"


def connect(server: Server) -> httpx.Client:
    headers = {"Authorization": f"Bearer {server.api_key}"}
    return httpx.Client(base_url=server.base_url, headers=headers, timeout=TIMEOUT_S, trust_env=False)


def run_until_it_dies(home, order, point, hit) -> bool:
    """Serve ``order`` by an API that dies at the given hit of ``point``; False: it came to the end without dying."""
    try:
        server = start_server(home, command="api", environment={"LUTHIER_FAULTS": f"{point}:{hit}"})
    except AssertionError as error:
        if DIED_AT_START not in str(error):
            raise
        return True
    try:
        with connect(server) as client:
            order.go_on(client)
    except httpx.TransportError:
        server.process.wait(TIMEOUT_S)
    server.stop()
    return server.process.returncode == faults.EXIT_CODE


@pytest.mark.parametrize("point", POINTS)
def test_api_when_it_dies_while_it_takes_a_file_and_a_job_then_both_are_there_once(tmp_path, point):
    home = tmp_path / "home"
    start_server(home, command="api").stop()  # the first start is another story
    deaths_in_service = 0
    for hit in itertools.count(1):
        assert hit <= DEATHS_MAX
        order = Order(content=b'{"text": "%d words"}\n' % hit * 20)
        has_died = run_until_it_dies(home, order, point, hit)
        server = start_server(home, command="api")
        try:
            with connect(server) as client:
                order.take_what_is_there(client)
                order.go_on(client)
                require_once(client, order)
        finally:
            server.stop()
        if not has_died:
            break
        deaths_in_service += order.upload_url is not None
    assert deaths_in_service >= 1


def require_once(client: httpx.Client, order: Order) -> None:
    """Assert that every file is whole, that this one has one job, and that none of either is there twice."""
    files = client.get("/v1/files").json()["data"]
    contents = [client.get(f"/v1/files/{file['id']}/content").content for file in files]
    assert contents.count(order.content) == 1
    assert len(set(contents)) == len(contents)
    jobs = client.get("/v1/fine-tunes").json()["data"]
    assert [job["id"] for job in jobs if job["training_file"] == order.file_id] == [order.job_id]
