"""The load generator: a correct server passes in every mode, and each wrong answer is reported with its reason."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.build import LOAD
from tests.support.basics import PATIENCE_S, quiet_port

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the load needs epoll(7)"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="the load needs a C compiler as 'cc'"),
]
Answer = Callable[[socket.socket, bytes], bool]  # answers one piece; false when the connection is to be closed


def honest(client: socket.socket, data: bytes) -> bool:
    client.sendall(data)
    return True


@contextlib.contextmanager
def stream_server(answer: Answer) -> Iterator[int]:
    """An echo with a thread for each connection, and answers made by the test. Yields its port."""
    with socket.create_server(("127.0.0.1", quiet_port()), backlog=512) as listener:

        def serve(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                while (data := client.recv(65_536)) and answer(client, data):
                    pass

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)


@contextlib.contextmanager
def datagram_server(answer: Callable[[bytes, int], list[bytes]]) -> Iterator[int]:
    """Answers each datagram with those that `answer(data, number)` returns. Yields its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", quiet_port()))

        def serve() -> None:
            number = 0
            while True:
                data, source = sock.recvfrom(65_535)
                if data == b"end":
                    return
                number += 1
                for piece in answer(data, number):
                    sock.sendto(piece, source)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.sendto(b"end", sock.getsockname())
            thread.join(PATIENCE_S)


def load(mode: str, port: int, count: int, size: int, seconds: float = 0.05, silent: float = 10) -> Any:
    """Run the load to its end; return the finished process."""
    words = [mode, "127.0.0.1", port, count, size, seconds, silent]
    return subprocess.run(
        [str(LOAD.make()), *map(str, words)],
        input="go\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def said(done: Any) -> Any:
    assert done.returncode == 0, done.stderr
    ready, time, answer = done.stdout.splitlines()
    assert (ready, time) == ("ready", "time")
    return json.loads(answer)


@pytest.mark.parametrize(
    ("mode", "count", "size"),
    [("pingpong", 1, 64), ("polling", 1, 64), ("pingpong", 7, 1024), ("bulk", 2, 262_144), ("churn", 4, 64),
     ("idle", 30, 64), ("fair", 2, 65_536)],
)  # fmt: skip
def test_correct_stream_server_passes(mode: str, count: int, size: int) -> None:
    with stream_server(honest) as port:
        found = said(load(mode, port, count, size))
    assert found["messages"] >= 1
    assert found["bytes"] >= found["timely_bytes"] >= 0
    assert found["lost"] == 0
    if mode in ("pingpong", "polling", "churn"):
        assert found["bytes"] == found["messages"] * size
    if mode == "idle":
        assert found["messages"] == count
    if mode == "fair" or count == 1:
        assert 0 < found["p50_us"] <= found["p99_us"] <= found["max_us"]


@pytest.mark.parametrize("size", [1, 512, 60_000])
def test_correct_datagram_server_passes(size: int) -> None:
    with datagram_server(lambda data, _: [data]) as port:
        found = said(load("udp", port, 2, size))
    assert found["messages"] >= 2
    assert found["bytes"] == found["messages"] * size


def test_lost_datagram_is_sent_again_and_counted() -> None:
    with datagram_server(lambda data, number: [data] if number % 5 else []) as port:
        found = said(load("udp", port, 1, 100, seconds=0.5))
    assert found["lost"] >= 1


def test_late_answer_to_a_repeated_datagram_is_accepted() -> None:
    kept: list[bytes] = []

    def late(data: bytes, number: int) -> list[bytes]:
        if number == 3:
            kept.append(data)
            return []
        return [data, kept.pop()] if kept else [data]

    with datagram_server(late) as port:
        assert said(load("udp", port, 1, 100, seconds=0.5))["lost"] >= 1  # more on a busy machine


def flips(client: socket.socket, data: bytes) -> bool:
    client.sendall(data[:-1] + bytes([data[-1] ^ 1]))
    return True


def adds(client: socket.socket, data: bytes) -> bool:
    client.sendall(data + b"!")
    return True


def drops(client: socket.socket, data: bytes) -> bool:
    client.sendall(data[1:])
    return True


def swallows(client: socket.socket, data: bytes) -> bool:
    return True


def leaves(client: socket.socket, data: bytes) -> bool:
    client.sendall(data[: len(data) // 2])
    return False


def late_flip() -> Answer:
    """Correct for the connection's first 64 bytes, so that the wrong answer comes while the load works."""
    told = threading.local()

    def answer(client: socket.socket, data: bytes) -> bool:
        first, told.before = not hasattr(told, "before"), True
        return honest(client, data) if first else flips(client, data)

    return answer


@pytest.mark.long
@pytest.mark.parametrize("mode", ["pingpong", "bulk", "churn", "idle", "fair"])
@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (flips, "a byte was changed"),
        (adds, "more came back than was sent|a byte was changed"),
        (drops, "a byte was changed"),
        (swallows, "no answer for 0.3 s"),
        (leaves, "the server closed connection|receive: Connection reset"),
    ],
)
def test_wrong_stream_answer_is_reported_with_its_reason(mode: str, lie: Answer, reason: str) -> None:
    with stream_server(lie) as port:
        done = load(mode, port, 2, 1024, silent=0.3)
    assert_told(done, reason)


def assert_told(done: Any, reason: str) -> None:
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("load: ")
    assert any(known in line for known in reason.split("|")), line


@pytest.mark.parametrize("mode", ["pingpong", "bulk", "idle", "fair"])
def test_wrong_answer_in_the_middle_is_reported(mode: str) -> None:
    with stream_server(late_flip()) as port:
        assert_told(load(mode, port, 2, 1024), "a byte was changed")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda data, _: [data[:-1] + bytes([data[-1] ^ 1])], "a byte was changed"),
        (lambda data, _: [data + b"!"], "a datagram of 100 bytes came back with 101"),
        (lambda data, _: [data[:-1]], "a datagram of 100 bytes came back with 99"),
        (lambda data, _: [data, data], "a byte was changed"),
        (lambda data, _: [], "no answer for 0.3 s"),
    ],
)
def test_wrong_datagram_answer_is_reported(answer: Callable[[bytes, int], list[bytes]], reason: str) -> None:
    with datagram_server(answer) as port:
        assert_told(load("udp", port, 1, 100, silent=0.3), reason)


def test_missing_server_is_reported() -> None:
    assert_told(load("pingpong", quiet_port(), 1, 64), "connect: Connection refused")
    assert_told(load("udp", quiet_port(), 1, 64), "receive: Connection refused|send: Connection refused")


@pytest.mark.parametrize("words", [[], ["sing"] * 6, ["pingpong", "127.0.0.1", "7", "0", "64", "1"]])
def test_bad_arguments_are_refused(words: list[str]) -> None:
    done = subprocess.run([str(LOAD.make()), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
