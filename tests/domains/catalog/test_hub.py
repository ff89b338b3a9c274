from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from luthier.catalog import folders
from luthier.catalog.builtin_models import FACTS, TINY
from luthier.catalog.schemas import FetchOrder, FetchResult

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "acme/model"


class Hub(ThreadingHTTPServer):
    """The few routes of the Hugging Face hub that reading one public model takes, over a folder."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.downloaded: list[str] = []
        self.gated = False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        path = self.path.partition("?")[0]
        prefix, _, name = path.rpartition("/")
        api = f"/api/models/{REPOSITORY}"
        if self.server.gated:
            self._refuse(403, "GatedRepo")
        elif path in (api, f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": entry["path"]} for entry in self._list_files()]
            self._send(json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode())
        elif path == f"{api}/tree/{COMMIT}":
            self._send(json.dumps(self._list_files()).encode())
        elif prefix == f"{api}/revision":
            self._refuse(404, "RevisionNotFound")
        elif prefix == f"/{REPOSITORY}/resolve/{COMMIT}":
            self._send_file(self.server.folder / name)
        else:
            self._refuse(404, "RepoNotFound")

    def _list_files(self):
        files = sorted(self.server.folder.iterdir())
        return [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)} for file in files]

    def _send_file(self, file):
        if not file.exists():
            self._refuse(404, "EntryNotFound")
            return
        if self.command == "GET":
            self.server.downloaded.append(file.name)
        self._send(file.read_bytes(), {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT})

    def _refuse(self, status, code):
        self._send(b"{}", {"X-Error-Code": code}, status=status)

    def _send(self, body, headers=None, *, status=200):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def _etag(file):
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub(model_folder):
    """A hub that has ``luthier/tiny`` under another name."""
    server = Hub(model_folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetch(hub, tmp_path):
    """Run the command as the supervisor does, against that hub; return its answer."""

    def run(reference=REPOSITORY, revision=None, **environment) -> FetchResult:
        order = FetchOrder(name=reference, source="hub", reference=reference, requested_revision=revision)
        (tmp_path / "order.json").write_bytes(msgspec.json.encode(order))
        command = [sys.executable, "-m", "luthier.catalog", "fetch", str(tmp_path / "order.json")]
        command += ["--models-dir", str(tmp_path / "models"), "--private-dir", str(tmp_path / "private")]
        command += ["--result", str(tmp_path / "result.json")]
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        done = subprocess.run(
            command, env=os.environ | settings | environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode in (0, 3), done.stderr
        return msgspec.json.decode((tmp_path / "result.json").read_bytes(), type=FetchResult)

    return run


def test_fetch_when_hub_has_the_model_downloads_safetensors_and_json_only(hub, fetch, tmp_path):
    (hub.folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (hub.folder / "modeling_acme.py").write_text("raise SystemExit")
    result = fetch()
    assert result.fetched.facts == FACTS[TINY]
    assert result.fetched.fetched_from == f"the Hugging Face hub, {REPOSITORY} at {COMMIT[:12]}"
    assert folders.identify(hub.folder).revision == result.fetched.revision
    assert not {"pytorch_model.bin", "modeling_acme.py"} & set(hub.downloaded)
    assert not (tmp_path / "models" / "acme--model" / ".download").exists()


def test_fetch_when_model_is_in_the_local_cache_asks_nobody(hub, fetch, tmp_path):
    snapshot = tmp_path / "hf" / "hub" / "models--acme--model" / "snapshots" / COMMIT
    shutil.copytree(hub.folder, snapshot)
    refs = tmp_path / "hf" / "hub" / "models--acme--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    result = fetch(HF_HUB_OFFLINE="1")
    assert result.fetched.facts == FACTS[TINY]
    assert result.fetched.fetched_from == f"the local Hugging Face cache, {REPOSITORY} at {COMMIT[:12]}"


def test_fetch_when_weights_are_pickles_downloads_nothing(hub, fetch):
    (hub.folder / "model.safetensors").rename(hub.folder / "pytorch_model.bin")
    error = fetch().error
    assert (error.code, error.is_final) == ("model_weights_pickled", True)
    assert hub.downloaded == []


def test_fetch_when_model_brings_code_never_downloads_the_weights(hub, fetch, edit_json):
    edit_json(hub.folder / "config.json", auto_map={"AutoConfig": "x.Y"})
    error = fetch().error
    assert error.code == "model_needs_code"
    assert "model.safetensors" not in hub.downloaded


@pytest.mark.parametrize(
    ("reference", "revision", "named"), [("acme/other", None, "acme/other"), (REPOSITORY, "v9", "v9")]
)
def test_fetch_when_hub_does_not_have_it_names_what_is_missing(fetch, reference, revision, named):
    error = fetch(reference, revision).error
    assert (error.code, error.is_final) == ("model_not_on_hub", True)
    assert named in error.message


def test_fetch_when_hub_asks_for_leave_says_how_to_get_it(hub, fetch):
    hub.gated = True
    error = fetch().error
    assert (error.code, error.is_final) == ("model_gated", True)
    assert "HF_TOKEN" in error.hint


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_fetch_when_hub_cannot_be_reached_may_be_tried_again(fetch, environment):
    error = fetch(**environment).error
    assert (error.code, error.is_final) == ("hub_unreachable", False)
