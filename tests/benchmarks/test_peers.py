"""Every installed peer is a whole echo server, so that figures compare the same work."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
from collections.abc import Iterator

import pytest

from benchmarks.process import Running, started
from benchmarks.servers import BEFORE, BY_NAME, SERVERS, missing
from tests.support.basics import PATIENCE_S, PROJECT
from tests.support.clients import receive_exactly

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmarks need Linux")
BLOCK = bytes(range(256)) * 1024
DATAGRAMS = [b"x", bytes(range(256)), bytes(range(256)) * 234]
# what half-close does to the others is theirs
SURE_OF_HALF_CLOSE = {"echo7", "c-epoll", "go", "go-copy", "node", "threads"}


@pytest.fixture(autouse=True)
def same_version_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `echo7-before` this version."""
    monkeypatch.setenv(BEFORE, str(PROJECT))


def ids(kind: str) -> list[str]:
    return [server.name for server in SERVERS if kind in server.commands]


@contextlib.contextmanager
def running_peer(name: str, kind: str) -> Iterator[Running]:
    """Start a server of the table, or skip the test if the server isn't available."""
    if reason := missing(BY_NAME[name]):
        pytest.skip(reason)
    with started(BY_NAME[name], kind, "127.0.0.1") as running:
        yield running


@pytest.mark.long
@pytest.mark.parametrize("name", ids("tcp"))
def test_block_comes_back_over_tcp(name: str) -> None:
    with running_peer(name, "tcp") as running:
        with socket.create_connection(("127.0.0.1", running.port), PATIENCE_S) as client:
            for at in range(0, len(BLOCK), 65_536):
                client.sendall(BLOCK[at : at + 65_536])
                assert receive_exactly(client, 65_536) == BLOCK[at : at + 65_536]
            if name in SURE_OF_HALF_CLOSE:
                client.sendall(BLOCK[:1000])
                client.shutdown(socket.SHUT_WR)
                assert receive_exactly(client, 1000) == BLOCK[:1000]
                assert client.recv(1) == b""
        assert running.cpu_s() > 0
        assert running.memory_bytes() > 0


@pytest.mark.long
@pytest.mark.parametrize("name", ids("udp"))
def test_datagrams_come_back_over_udp(name: str) -> None:
    with running_peer(name, "udp") as running:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE_S)
            client.connect(("127.0.0.1", running.port))
            for data in DATAGRAMS:
                client.send(data)
                assert client.recv(65_535) == data


@pytest.mark.parametrize("folder", [None, "", "/", "/no/such"])
def test_missing_other_version_is_reported_in_one_line(folder: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BEFORE) if folder is None else monkeypatch.setenv(BEFORE, folder)
    assert "ECHO7_BEFORE names no folder with another version; git worktree add" in str(
        missing(BY_NAME["echo7-before"])
    )


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler as 'cc'")
def test_c_peer_loses_nothing_after_a_partial_write() -> None:
    """A client that sends much before it reads causes partial writes in the peer."""
    [server] = [server for server in SERVERS if server.name == "c-epoll"]
    with started(server, "tcp", "127.0.0.1") as running:
        with socket.create_connection(("127.0.0.1", running.port), PATIENCE_S) as client:
            client.setblocking(False)
            sent = 0
            try:
                while True:
                    sent += client.send(BLOCK[sent % len(BLOCK) :])
            except BlockingIOError:
                client.settimeout(PATIENCE_S)
            received = receive_exactly(client, sent)
    assert received == (BLOCK * (sent // len(BLOCK) + 1))[:sent]
