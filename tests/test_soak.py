"""The soak can fail: a correct daemon passes, and each planted fault is reported."""

from __future__ import annotations

import sys

import pytest

from tests import soak

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the soak needs Linux, for /proc"),
]
SHORT = ["--minutes", "0.05", "--connections", "20", "--seed", "862"]
PATCHED = """
import os, sys
import echo7.server
from echo7 import cli
from echo7.policy.echo import DatagramEcho, StreamEcho
from reactor import Connection, Datagram
%s
sys.exit(cli.main())
"""
FAULTS = {
    "a byte changed": """
def changed(connection, data, seen=[]):
    seen.append(1)
    Connection.write(connection, data if len(seen) % 100 else bytes([data[0] ^ 1]) + data[1:])
StreamEcho.data_received = staticmethod(changed)
""",
    "a byte lost": """
def lost(connection, data, seen=[]):
    seen.append(1)
    Connection.write(connection, data if len(seen) % 100 else data[1:])
StreamEcho.data_received = staticmethod(lost)
""",
    "a connection broken": """
def broken(connection, data, seen=[]):
    seen.append(1)
    Connection.write(connection, data) if len(seen) % 100 else connection.abort()
StreamEcho.data_received = staticmethod(broken)
""",
    "a datagram changed": """
echo7.server.batch_on = lambda *endpoint: None
send = Datagram.send
Datagram.send = lambda self, data, *to: send(self, data[:-1] + b"?", *to)
""",
    "a datagram answered twice": """
echo7.server.batch_on = lambda *endpoint: None
send = Datagram.send
Datagram.send = lambda self, data, *to: send(self, data, *to) and send(self, data, *to)
""",
    "memory": """
kept = []
StreamEcho.connection_made = lambda self, connection: (self._made(connection), kept.append(b"x" * 100_000))
""",
    "descriptors": """
StreamEcho.connection_made = lambda self, connection: (self._made(connection), os.dup(2))
""",
    "the log says": """
def raising(connection, data, seen=[]):
    seen.append(1)
    Connection.write(connection, data if len(seen) % 100 else 1 / 0)
StreamEcho.data_received = staticmethod(raising)
""",
    "exit status 3": """
sys.exit(cli.main() or 3)
""",
    "exit status -9": """
def dying(connection, data, seen=[]):
    seen.append(1)
    Connection.write(connection, data if len(seen) % 300 else os.kill(os.getpid(), 9))
StreamEcho.data_received = staticmethod(dying)
""",
}
REPORTED = {
    "a byte changed": "got a wrong byte",
    "a byte lost": "got ",
    "a connection broken": "lost its connection",
    "a datagram changed": "came back changed, or twice",
    "a datagram answered twice": "came back changed, or twice",
}


def test_three_seconds_of_mixed_load_leave_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    """Three seconds of what `python3 -m tests.soak` does for ten minutes."""
    assert soak.main(SHORT) == 0, capsys.readouterr().out
    table = capsys.readouterr().out
    assert "| violations | 0 |" in table
    assert "| exit status on SIGTERM | 0 |" in table


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_reported(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A soak that can't fail would prove nothing."""
    assert soak.main(SHORT, (sys.executable, "-c", PATCHED % FAULTS[fault])) == 1
    assert REPORTED.get(fault, fault) in capsys.readouterr().out.partition("violation: ")[2]
