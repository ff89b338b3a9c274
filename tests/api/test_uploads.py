"""Bytes on their way in, over real connections: cut off, too long, too slow, twice, late, damaged."""

from __future__ import annotations

import hashlib
import shutil
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest

import disks
from luthier.settings import Settings
from luthier.storage import DiskStore

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # the bytes never meet the database

MIB = 1024 * 1024
DATA = b'{"text": "hello"}\n' * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()
FIELDS = {"file_name": "train.jsonl", "purpose": "fine-tune", "file_type": "jsonl"}
DEADLINE_S = 10


@pytest.fixture
def settings(home) -> Settings:
    return Settings(home=home, disk_reserve_bytes=0, upload_max_bytes=4 * MIB, upload_idle_timeout_s=0.5)


def request_upload(client, **changes) -> httpx.Response:
    return client.post("/v1/files", data={**FIELDS, **changes})


def start_upload(client, **changes) -> tuple[str, str]:
    """Return the upload's URL and the file's id."""
    response = request_upload(client, **changes)
    assert response.status_code == 302, response.text
    return response.headers["Location"], response.headers["X-Together-File-Id"]


def list_stored(service) -> list[str]:
    """Return every file under the store, finished or not."""
    return sorted(str(path) for path in service.store.root.rglob("*") if path.is_file())


def wait_until(condition) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def open_put(url: str, length: int | None) -> socket.socket:
    """Open a connection and send the head of an upload."""
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=DEADLINE_S)
    head = f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    head += "" if length is None else f"Content-Length: {length}\r\n"
    connection.sendall(f"{head}\r\n".encode())
    return connection


def read_status(connection: socket.socket) -> int:
    with connection.makefile("rb") as answer:
        return int(answer.readline().split()[1])


def get_code(response: httpx.Response) -> str:
    assert response.json()["error"]["hint"], "every error says the way out"
    return response.json()["error"]["code"]


def test_put_when_whole_is_a_file_and_its_bytes_come_back(service, client):
    url, file_id = start_upload(client, checksum=SHA256)
    response = httpx.put(url, content=DATA)
    assert response.status_code == 200
    assert response.json()["id"] == file_id
    file = client.get(f"/v1/files/{file_id}").json()
    assert (file["bytes"], file["processing_status"], file["filename"]) == (len(DATA), "QUEUED", "train.jsonl")
    assert client.get(f"/v1/files/{file_id}/content").content == DATA


def test_put_when_the_connection_is_cut_keeps_nothing_and_the_url_is_still_good(service, client):
    url, file_id = start_upload(client)
    with open_put(url, 5 * MIB // 2) as connection:
        connection.sendall(b"x" * 2 * MIB)
    with open_put(url, 1000) as connection:
        connection.sendall(b"x" * 999)
    wait_until(lambda: service_is_idle(service))
    assert list_stored(service) == []
    assert get_code(client.get(f"/v1/files/{file_id}")) == "file_incomplete"
    assert httpx.put(url, content=DATA).status_code == 200


def service_is_idle(service) -> bool:
    """Tell whether both cut uploads were answered, by what the service counts."""
    metrics = httpx.get(f"{service.base_url}/metrics").text
    return 'luthier_http_requests_total{method="PUT",route="/v1/uploads/{upload_id}",status="400"} 2.0' in metrics


def test_put_when_the_checksum_is_another_keeps_nothing_and_may_be_repeated(service, client):
    url, file_id = start_upload(client, checksum=SHA256)
    response = httpx.put(url, content=DATA[:-1] + b"X")
    assert response.status_code == 400
    assert get_code(response) == "checksum_mismatch"
    assert SHA256 in response.json()["error"]["message"]
    assert list_stored(service) == []
    assert get_code(client.get(f"/v1/files/{file_id}")) == "file_incomplete"
    assert httpx.put(url, content=DATA).status_code == 200


def test_put_when_announced_too_large_is_refused_before_a_byte_is_read(service, client):
    url, _ = start_upload(client)
    with open_put(url, 4 * MIB + 1) as connection:
        assert read_status(connection) == 413
    assert list_stored(service) == []


def test_put_when_refused_early_the_sender_still_reads_why(service, client):
    url, _ = start_upload(client)
    response = httpx.put(url, content=b"x" * (32 * MIB))  # far more than all socket buffers hold
    assert response.status_code == 413
    assert get_code(response) == "file_too_large"


def test_put_when_longer_than_announced_is_a_file_of_the_announced_bytes(service, client):
    """What follows belongs to no request: it costs the sender the connection, not the file."""
    url, file_id = start_upload(client)
    with open_put(url, len(DATA)) as connection:
        connection.sendall(DATA + b"GARBAGE" * 1000)
        assert read_status(connection) == 200
    assert client.get(f"/v1/files/{file_id}/content").content == DATA


@pytest.mark.parametrize("path", ["put", "form"])
def test_upload_when_empty_is_refused(service, client, path):
    if path == "put":
        url, _ = start_upload(client)
        response = httpx.put(url, content=b"")
    else:
        response = client.post("/v1/files/upload", data=FIELDS, files={"file": ("train.jsonl", b"")})
    assert response.status_code == 400
    assert get_code(response) == "empty_file"
    assert list_stored(service) == []


def test_put_without_length_is_refused(service, client):
    url, _ = start_upload(client)
    response = httpx.put(url, content=iter([DATA]))
    assert response.status_code == 411
    assert get_code(response) == "length_required"


def test_put_when_the_url_was_used_is_a_conflict_and_changes_nothing(service, client):
    url, file_id = start_upload(client)
    assert httpx.put(url, content=DATA).status_code == 200
    response = httpx.put(url, content=b"other bytes")
    assert response.status_code == 409
    assert get_code(response) == "upload_used"
    assert client.get(f"/v1/files/{file_id}/content").content == DATA
    assert len(list_stored(service)) == 1


def test_put_by_two_at_once_is_one_file(service, client):
    url, file_id = start_upload(client)
    first, second = (open_put(url, len(DATA)) for _ in range(2))
    with first, second:
        first.sendall(DATA[:-1])
        second.sendall(DATA[:-1])
        first.sendall(DATA[-1:])
        second.sendall(DATA[-1:])
        assert sorted([read_status(first), read_status(second)]) == [200, 409]
    assert client.get(f"/v1/files/{file_id}/content").content == DATA
    assert len(list_stored(service)) == 1


def test_put_when_the_url_expired_is_gone_and_says_when(service, client):
    url, _ = start_upload(client)
    service.clock.advance(service.settings.upload_url_ttl_s)
    response = httpx.put(url, content=DATA)
    assert response.status_code == 410
    assert get_code(response) == "upload_expired"
    assert "2026-01-01 13:00:00 UTC" in response.json()["error"]["message"]


@pytest.mark.parametrize("token", ["", "?token=", "?token=forged", "?token=%FF"])
def test_put_with_a_forged_url_is_forbidden(service, client, token):
    url, _ = start_upload(client)
    response = httpx.put(url.partition("?")[0] + token, content=DATA)
    assert response.status_code == 403
    assert get_code(response) == "invalid_upload_url"
    assert list_stored(service) == []


def test_put_with_the_token_of_another_upload_is_forbidden(service, client):
    (url, _), (other, _) = start_upload(client), start_upload(client)
    response = httpx.put(f"{url.partition('?')[0]}?{other.partition('?')[2]}", content=DATA)
    assert response.status_code == 403


def test_put_when_the_sender_falls_silent_is_ended(service, client):
    url, _ = start_upload(client)
    with open_put(url, 1000) as connection:
        connection.sendall(b"x" * 10)
        assert read_status(connection) == 408
    wait_until(lambda: list_stored(service) == [])


def test_put_of_many_at_once_keeps_them_apart(service, client):
    bodies = [bytes([number]) * (MIB + number) for number in range(8)]
    uploads = [start_upload(client) for _ in bodies]
    statuses = []

    def send(url: str, body: bytes) -> None:
        statuses.append(httpx.put(url, content=body, timeout=60).status_code)

    threads = [threading.Thread(target=send, args=(url, body)) for (url, _), body in zip(uploads, bodies, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8
    for (_, file_id), body in zip(uploads, bodies, strict=True):
        assert client.get(f"/v1/files/{file_id}/content").content == body


def test_form_when_whole_is_a_file(service, client):
    response = client.post("/v1/files/upload", data=FIELDS, files={"file": ("ignored.jsonl", DATA)})
    assert response.status_code == 200, response.text
    file = response.json()
    assert (file["filename"], file["bytes"], file["processing_status"]) == ("train.jsonl", len(DATA), "QUEUED")
    assert client.get(f"/v1/files/{file['id']}/content").content == DATA


def test_form_when_the_file_comes_before_the_fields_is_a_file(service, client):
    body = make_form([("file", "train.jsonl", DATA), ("purpose", None, b"fine-tune")])
    response = post_form(client, body)
    assert response.status_code == 200, response.text
    assert response.json()["filename"] == "train.jsonl"
    assert client.get(f"/v1/files/{response.json()['id']}/content").content == DATA


@pytest.mark.parametrize("boundary", ["x", "-----", "a" * 60])
def test_form_when_the_file_looks_like_its_boundary_keeps_every_byte(service, client, boundary):
    tricky = f"\r\n--{boundary[:-1]}\r\n--\r\n\r\n--{boundary}".encode()[:-1] * 100 + b"\r\n\r"
    body = make_form([("purpose", None, b"eval"), ("file", "t.csv", tricky)], boundary)
    response = post_form(client, body, boundary)
    assert response.status_code == 200, response.text
    assert client.get(f"/v1/files/{response.json()['id']}/content").content == tricky


def make_form(parts, boundary="limit") -> bytes:
    body = b""
    for name, filename, value in parts:
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        body += f'; filename="{filename}"'.encode() if filename else b""
        body += b"\r\n\r\n" + value + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def post_form(client, body: bytes, boundary: str = "limit") -> httpx.Response:
    return client.post(
        "/v1/files/upload", content=body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_form"),
        (b"no boundary at all", "malformed_form"),
        (make_form([("file", "t.jsonl", DATA)])[:-20], "malformed_form"),
        (make_form([("purpose", None, b"fine-tune")]), "missing_file"),
        (make_form([("file", "t.jsonl", DATA)]), "missing_purpose"),
        (make_form([("file", "t.jsonl", DATA), ("file", "u.jsonl", DATA)]), "malformed_form"),
        (make_form([("purpose", None, b"x" * 20_000), ("file", "t.jsonl", DATA)]), "malformed_form"),
        (make_form([(f"f{number}", None, b"") for number in range(30)]), "malformed_form"),
        (make_form([("file", "t.exe", DATA), ("purpose", None, b"fine-tune")]), "invalid_file_type"),
    ],
    ids=["empty", "garbage", "cut", "no file", "no purpose", "two files", "huge field", "many parts", "type"],
)
def test_form_when_malformed_is_refused_and_keeps_nothing(service, client, body, code):
    response = post_form(client, body)
    assert response.status_code in {400, 422}, response.text
    assert get_code(response) == code
    assert list_stored(service) == []


def test_form_when_the_file_is_too_large_is_cut_off(service, client):
    response = client.post("/v1/files/upload", data=FIELDS, files={"file": ("t.jsonl", b"x" * (5 * MIB))})
    assert response.status_code == 413
    assert get_code(response) == "file_too_large"
    assert list_stored(service) == []


def test_form_without_key_is_401_before_a_byte_is_kept(service):
    with httpx.Client(base_url=service.base_url) as nobody:
        response = nobody.post("/v1/files/upload", data=FIELDS, files={"file": ("t.jsonl", DATA)})
    assert response.status_code == 401
    assert list_stored(service) == []


def test_same_content_again_is_409_with_the_file_to_use(service, client):
    first = client.post("/v1/files/upload", data=FIELDS, files={"file": ("t.jsonl", DATA)}).json()["id"]
    for response in (
        request_upload(client, checksum=SHA256.upper()),
        client.post("/v1/files/upload", data=FIELDS, files={"file": ("other.jsonl", DATA)}),
    ):
        assert response.status_code == 409
        assert response.json()["file_id"] == first
        assert response.headers["x-should-retry"] == "false"
        assert get_code(response) == "file_exists"
    assert len(list_stored(service)) == 1


def test_same_content_when_announced_twice_is_one_file(service, client):
    """Both were given a URL, because neither was there yet; the second is told which file to use."""
    (url, first), (second_url, second) = start_upload(client, checksum=SHA256), start_upload(client, checksum=SHA256)
    assert httpx.put(url, content=DATA).status_code == 200
    response = httpx.put(second_url, content=DATA)
    assert (response.status_code, get_code(response)) == (409, "file_exists")
    assert response.json()["file_id"] == first
    assert get_code(client.get(f"/v1/files/{second}")) == "file_incomplete"
    assert [file["id"] for file in client.get("/v1/files").json()["data"]] == [first]
    assert len(list_stored(service)) == 1


def test_same_content_when_not_announced_is_taken_twice(service, client):
    """The client of 2024 announces nothing, and takes any answer but 200 for a failed upload."""
    for _ in range(2):
        url, _ = start_upload(client)
        assert httpx.put(url, content=DATA).status_code == 200
    assert len(client.get("/v1/files").json()["data"]) == 2


def test_same_content_in_another_project_is_its_own_file(service, client, other_project_key):
    first = client.post("/v1/files/upload", data=FIELDS, files={"file": ("t.jsonl", DATA)}).json()["id"]
    with service.connect(other_project_key) as other:
        assert request_upload(other, checksum=SHA256).status_code == 302
        response = other.post("/v1/files/upload", data=FIELDS, files={"file": ("t.jsonl", DATA)})
    assert response.status_code == 200
    assert response.json()["id"] != first


def test_same_content_after_a_delete_is_a_new_file(service, client):
    first = client.post("/v1/files/upload", data=FIELDS, files={"file": ("t.jsonl", DATA)}).json()["id"]
    assert client.delete(f"/v1/files/{first}").json() == {"id": first, "object": "file", "deleted": True}
    assert request_upload(client, checksum=SHA256).status_code == 302


@pytest.fixture
def small_store(settings, tmp_path):
    with disks.small_disk(tmp_path / "small", 2 * MIB) as root:
        yield DiskStore(root)


class TestWhenTheDiskIsSmall:
    @pytest.fixture
    def service(self, settings, database, clock, small_store, run_service):
        with run_service(settings, database, small_store, clock) as running:
            yield running

    def test_put_that_does_not_fit_is_refused_by_its_length(self, service, client):
        url, file_id = start_upload(client)
        with open_put(url, 3 * MIB) as connection:
            assert read_status(connection) == 503
        assert get_code(client.get(f"/v1/files/{file_id}")) == "file_incomplete"

    def test_put_that_fills_the_disk_meanwhile_keeps_nothing_and_the_next_is_taken(self, service, client):
        url, _ = start_upload(client)
        with open_put(url, MIB + MIB // 2) as connection:
            connection.sendall(b"x" * MIB)
            filler = service.store.open_writer("filler")
            filler.write(b"x" * MIB)
            connection.sendall(b"x" * (MIB // 2))
            assert read_status(connection) == 503
        filler.abort()
        assert list_stored(service) == []
        assert httpx.put(url, content=DATA).status_code == 200


def test_form_of_unknown_length_when_it_reaches_the_reserve_is_refused(
    settings, database, clock, tmp_path, run_service
):
    settings = settings.model_copy(update={"disk_reserve_bytes": 4 * MIB, "upload_max_bytes": 64 * MIB})
    with disks.small_disk(tmp_path / "small", 16 * MIB) as root:
        least_free = []

        def send():
            yield make_form([("purpose", None, b"eval"), ("file", "t.csv", b"x")])[: -len(b"\r\n--limit--\r\n")]
            for _ in range(32):
                least_free.append(shutil.disk_usage(root).free)
                yield b"x" * MIB
            yield b"\r\n--limit--\r\n"

        with run_service(settings, database, DiskStore(root), clock) as service, service.connect() as client:
            headers = {"Content-Type": "multipart/form-data; boundary=limit"}
            response = client.post("/v1/files/upload", content=send(), headers=headers)
            assert (response.status_code, get_code(response)) == (503, "disk_full")
            assert min(least_free) >= 4 * MIB
            wait_until(lambda: list_stored(service) == [])
