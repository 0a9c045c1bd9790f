"""Tests that the trainer's report server serves only the report and accepts no input."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from finetune_api.names import REPORT_PORT
from finetune_api.run import Report
from finetune_trainer.pod import report_server

ADDRESS = ("127.255.96.1", REPORT_PORT)
SECRET = "hf_s3cr3t"
GET = b"GET /v1/report HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")  # because stopping one takes half a second
def server() -> Iterator[None]:
    report = Report(
        job_uid="u",
        attempt=1,
        worker_index=0,
        sequence=1,
        stage="Training",
        stage_since=datetime.now(UTC),
        activity=1,
        activity_age_seconds=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        running = report_server.serve(*ADDRESS, lambda: report)
        yield
        running.shutdown()
        running.server_close()


def connect() -> socket.socket:
    return socket.create_connection(ADDRESS, timeout=10)


def ask(request: bytes) -> bytes:
    """Return the complete response."""
    with connect() as connection:
        connection.sendall(request)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
    return answer


def code(answer: bytes) -> int:
    return int(answer.split()[1])


METHODS = ("HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "X")


@pytest.mark.parametrize("method", METHODS)
def test_no_other_method_is_allowed(server, method):
    body = b"Content-Length: 5\r\n\r\nhello"
    assert code(ask(f"{method} /v1/report HTTP/1.1\r\n".encode() + body)) == 405


PATHS = (
    "/",
    "/v1",
    "/v1/report/",
    "/v1/report?verbose=1",
    "/v1//report",
    "/v1/../v1/report",
    "/%76%31/report",
    "/v1/report/../../../proc/self/environ",
    "//etc/passwd",
    "/proc/self/environ",
    "http://169.254.169.254/latest",
    "*",
    f"/{SECRET}",
)


@pytest.mark.parametrize("path", PATHS)
def test_other_paths_do_not_exist_and_are_not_echoed(server, path):
    answer = ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert code(answer) == 404
    assert answer.endswith(b"\r\n\r\n404 Not Found\n")
    assert SECRET.encode() not in answer


def test_the_response_reveals_the_job_and_nothing_about_the_machine(server):
    head, _, body = ask(GET).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert Report.model_validate_json(body).job_uid == "u"
    names = {line.partition(b":")[0] for line in head.split(b"\r\n")[1:]}
    assert names == {b"Server", b"Date", b"Content-Type", b"Content-Length"}
    assert b"ython" not in head
    for secret in (SECRET, os.getcwd(), "PATH"):
        assert secret.encode() not in body


BROKEN = {
    "not HTTP": (b"\x16\x03\x01\x02\r\n\r\n", 400),
    "a long line": (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
    "a long header": (GET[:-2] + b"X: " + b"x" * 70_000 + b"\r\n\r\n", 431),
    "many headers": (GET[:-2] + b"X: y\r\n" * 200 + b"\r\n", 431),
    "HTTP/2": (b"GET /v1/report HTTP/2.0\r\n\r\n", 505),
}


@pytest.mark.parametrize("name", BROKEN)
def test_malformed_requests_are_refused(server, name):
    request, expected = BROKEN[name]
    answer = ask(request)
    assert f"{expected} ".encode() in answer
    assert len(answer) < 400
    assert code(ask(GET)) == 200


def test_many_slow_clients_use_few_threads_and_block_no_other_client(server):
    before = threading.active_count()
    begin = time.monotonic()
    slow = [connect() for _ in range(64)]
    try:
        for connection in slow:
            connection.sendall(b"GET /v1/report HTTP/1.1\r\nX: ")
        for _ in range(3):
            assert code(ask(GET)) == 200
        assert threading.active_count() - before <= 10
        assert time.monotonic() - begin < 3
    finally:
        for connection in slow:
            connection.close()


def test_a_client_that_reads_nothing_blocks_no_other_client(server):
    deaf = [connect() for _ in range(4)]
    for connection in deaf:
        connection.sendall(GET)
    assert code(ask(GET)) == 200
    for connection in deaf:
        connection.close()
