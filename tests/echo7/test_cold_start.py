"""A new service answers soon: it imports only what serving needs.

`python3 -m benchmarks cold-start` measures how long that takes; this test only lists what is imported.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.basics import PROJECT

PROGRAM = """
import sys
before = set(sys.modules)
from echo7 import cli
from echo7.process.service import Service

Service.run = lambda service: 0  # it serves, then ends
status = cli.main(["serve", "--host", "127.0.0.1", "--port", "0", "--log-level", "error", *sys.argv[1:]])
assert status == 0
print(*sorted(set(sys.modules) - before))
"""

OURS = """
    echo7 echo7.arguments echo7.assembly echo7.cli echo7.logs echo7.logs.drops echo7.logs.log echo7.logs.quiet
    echo7.logs.report echo7.policy echo7.policy.echo echo7.policy.guard echo7.policy.loops echo7.policy.ports
    echo7.policy.rate echo7.policy.reasons echo7.policy.shares echo7.policy.sources echo7.process
    echo7.process.child echo7.process.handover
    echo7.process.limits echo7.process.previous echo7.process.restart echo7.process.sandbox echo7.process.service
    echo7.serve echo7.server echo7.settings echo7.sockets echo7.sockets.adoption echo7.sockets.binding
    echo7.sockets.reuseport reactor reactor.buffer reactor.connection reactor.connector reactor.console
    reactor.console.commandline reactor.datagram reactor.doors reactor.fastpath reactor.fastpath.batch
    reactor.fastpath.datagrams reactor.fastpath.epoll reactor.fastpath.splice reactor.handler reactor.limits
    reactor.listener reactor.loop reactor.signals reactor.sockets reactor.sockets.addresses reactor.sockets.congestion
    reactor.sockets.errors reactor.sockets.factory reactor.sockets.opening reactor.sockets.pktinfo
    reactor.sockets.seconds reactor.sockets.signaltable reactor.sockets.wakeup reactor.sockets.watchlist reactor.timers
    reactor.verbs
""".split()
# What those ask for by name, and what the standard library itself needs for that (of any version so far).
STANDARD = """
    __future__ _ast _collections _collections_abc _colorize _functools _heapq _locale _operator _queue _socket _sre
    _stat _string _struct _tokenize _typing _weakrefset abc annotationlib argparse array ast atexit collections
    collections.abc contextlib copyreg enum errno fcntl functools genericpath gettext heapq importlib
    importlib._bootstrap importlib._bootstrap_external itertools keyword linecache locale logging math operator os
    os.path posixpath queue re re._casefix re._compiler re._constants re._parser reprlib resource select selectors
    signal socket stat string struct textwrap threading token tokenize traceback types typing typing.io typing.re
    warnings weakref
""".split()
BATCHES = "_ctypes ctypes ctypes._endian mmap reactor.fastpath.mmsg".split()
SANDBOX = """
    _ctypes ctypes ctypes._endian echo7.process.sandbox.calls echo7.process.sandbox.kernel
    echo7.process.sandbox.landlock echo7.process.sandbox.linux echo7.process.sandbox.seccomp
""".split()


def imported(*arguments: str) -> set[str]:
    command = [sys.executable, "-S", "-c", PROGRAM, *arguments]
    done = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other modules")
@pytest.mark.parametrize(
    ("arguments", "more"),
    [(["--no-udp", "--sandbox", "off"], []), (["--sandbox", "off"], BATCHES), ([], BATCHES + SANDBOX)],
    ids=["tcp", "tcp and udp", "restricted"],
)
def test_service_imports_only_what_serving_needs(arguments: list[str], more: list[str]) -> None:
    """Issue: "nothing imported that serving doesn't need (a test lists the modules)"."""
    found = imported(*arguments)
    expected = {*OURS, *more}
    assert {name for name in found if name.split(".")[0] in ("echo7", "reactor")} == {
        name for name in expected if name.split(".")[0] in ("echo7", "reactor")
    }
    assert found <= {*expected, *STANDARD}
