"""Messages to systemd (sd_notify(3)), with a test socket in place of systemd."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from echo7.process.notify import RETRY_S, Notifier
from reactor import Reactor
from reactor.sockets.errors import os_error
from tests.support.basics import PATIENCE_S
from tests.support.daemon import EchoProcess, WorkersProcess
from tests.support.loops import ManualClock, turn_idle

if not hasattr(socket, "AF_UNIX"):
    pytest.skip("systemd is for Linux", allow_module_level=True)

HOST = ("--host", "127.0.0.1")


class Ear:
    """The socket on which systemd would listen."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(PATIENCE_S)

    def hear(self) -> str:
        """The next message."""
        return self._socket.recv(4096).decode()

    def hear_next(self, beginning: str) -> str:
        """Tell whether the next message besides WATCHDOG=1 begins like this."""
        while (message := self.hear()) == "WATCHDOG=1":
            pass
        assert message.startswith(beginning), message
        return message

    def all(self) -> list[str]:
        """Return the messages so far."""
        self._socket.setblocking(False)
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(self.hear())
        self._socket.settimeout(PATIENCE_S)
        return heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def ear(tmp_path: pathlib.Path) -> Iterator[Ear]:
    made = Ear(str(tmp_path / "notify"))
    yield made
    made.close()


def environment(address: str, **others: str) -> dict[str, str]:
    return {**os.environ, "NOTIFY_SOCKET": address, **others}


# ---------------------------------------------------------------- the daemon


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_comes_when_it_serves_and_stopping_when_it_ends(tmp_path: pathlib.Path, abstract: bool) -> None:
    ear = Ear(f"@echo7-test-{os.getpid()}" if abstract else str(tmp_path / "notify"))
    with contextlib.closing(ear), EchoProcess(*HOST, env=environment(ear.address), wait=False) as echo:
        assert ear.hear() == "READY=1"
        echo.wait_until_ready()
        assert echo.finish() == 0
        assert ear.all() == ["STOPPING=1"]


def test_with_workers_ready_comes_when_all_of_them_serve(ear: Ear) -> None:
    with WorkersProcess(*HOST, env=environment(ear.address, WATCHDOG_USEC="100000"), wait=False) as echo:
        assert ear.hear() == "READY=1"
        assert echo.next_line("listening")
        assert ear.hear() == "WATCHDOG=1"
        assert echo.finish() == 0
        assert ear.hear_next("STOPPING=1")


def test_stuck_loop_sends_no_message(ear: Ear) -> None:
    """The loop itself sends "alive", so systemd notices a stuck loop."""
    with EchoProcess(*HOST, env=environment(ear.address, WATCHDOG_USEC="100000")) as echo:
        assert [ear.hear() for _ in range(4)] == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
        echo.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, echo.process.pid, os.WSTOPPED)
        ear.all()
        time.sleep(0.3)  # no event marks a missing message
        assert ear.all() == []
        echo.process.send_signal(signal.SIGCONT)
        assert ear.hear() == "WATCHDOG=1"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"NOTIFY_SOCKET": "/no/such/socket"}, "No such file or directory"),
        ({"NOTIFY_SOCKET": "relative"}, "it is neither a path nor '@' and a name"),
        ({"WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC is 'soon', not a number of microseconds"),
    ],
    ids=str,
)
def test_notification_that_fails_costs_one_line(ear: Ear, given: dict[str, str], why: str) -> None:
    with EchoProcess(*HOST, env={**environment(ear.address), **given}) as echo:
        assert echo.finish() == 0
        told = [line for line in echo.lines if line["event"] == "notify_failed"]
        assert [line["level"] for line in told] == ["warning"]
        assert why in told[0]["message"]


# ---------------------------------------------------------------- a loop turned by hand


@contextlib.contextmanager
def notifier(given: dict[str, str]) -> Iterator[tuple[Notifier, Reactor, ManualClock]]:
    clock = ManualClock()
    with Reactor(clock=clock) as reactor:
        made = Notifier(reactor, given)
        yield made, reactor, clock
        made.close()


def test_variables_are_removed_and_kept_for_the_next_generation(ear: Ear) -> None:
    given = {"NOTIFY_SOCKET": ear.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    with notifier(given) as (made, _, _):
        assert given == {"HOME": "/"}
        assert made.variables == {
            "NOTIFY_SOCKET": ear.address,
            "WATCHDOG_USEC": "3000000",
            "WATCHDOG_PID": str(os.getpid()),
        }


def test_alive_is_sent_twice_within_the_watchdog_time(ear: Ear) -> None:
    with notifier({"NOTIFY_SOCKET": ear.address, "WATCHDOG_USEC": "3000000"}) as (made, reactor, clock):
        made.ready()
        assert ear.all() == ["READY=1", "WATCHDOG=1"]
        for _ in range(3):
            clock.advance(1.4)
            turn_idle(reactor)
            assert ear.all() == []
            clock.advance(0.1)
            turn_idle(reactor)
            assert ear.all() == ["WATCHDOG=1"]
        made.ready()
        assert ear.all() == ["READY=1"], "one timer is enough"


def test_reloading_is_sent_with_the_time(ear: Ear) -> None:
    """`Type=notify-reload` needs the start of the reload, on CLOCK_MONOTONIC."""
    with notifier({"NOTIFY_SOCKET": ear.address}) as (made, _, _):
        before_usec = time.monotonic_ns() // 1000
        made.reloading()
        first, second = ear.hear().split("\n")
        assert first == "RELOADING=1"
        assert before_usec <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize("pid", ["1", "", "x"])
def test_watchdog_for_another_process_is_ignored(ear: Ear, pid: str) -> None:
    with notifier({"NOTIFY_SOCKET": ear.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": pid}) as (made, _, _):
        made.ready()
        assert ear.all() == ["READY=1"]


@pytest.mark.parametrize("usec", ["", "0", "-1", "1.5", "²", "9" * 400, str(2**63)])
def test_invalid_watchdog_time_costs_one_line(ear: Ear, caplog: pytest.LogCaptureFixture, usec: str) -> None:
    with notifier({"NOTIFY_SOCKET": ear.address, "WATCHDOG_USEC": usec}) as (made, _, _):
        made.ready()
        assert ear.all() == ["READY=1"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "not a number of microseconds: let systemd set it, or unset it" in caplog.text


def test_messages_without_room_wait_in_order_and_alive_is_dropped(ear: Ear) -> None:
    """When systemd reads slowly, nothing blocks, and READY isn't lost."""
    with notifier({"NOTIFY_SOCKET": ear.address, "WATCHDOG_USEC": "3000000"}) as (made, reactor, clock):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    other.sendto(b"noise", ear.address)
            made.reloading()
            made.ready()
            clock.advance(1.5)
            turn_idle(reactor)
            assert {*ear.all()} == {"noise"}
        clock.advance(RETRY_S)
        turn_idle(reactor)
        assert [message.partition("\n")[0] for message in ear.all()] == ["RELOADING=1", "READY=1"]


def test_notifier_without_a_listener_complains_once_and_tries_again(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = str(tmp_path / "late")
    with notifier({"NOTIFY_SOCKET": address}) as (made, _, _):
        made.ready()
        made.reloading()
        assert len(caplog.records) == 1
        assert "No such file or directory; serving without it" in caplog.text
        with contextlib.closing(Ear(address)) as ear:
            made.ready()
            assert ear.all() == ["READY=1"]


@pytest.mark.parametrize("address", ["/tmp/nu\0l", "/" + "x" * 200, "@" + "x" * 200])
def test_invalid_notify_address_costs_one_line(caplog: pytest.LogCaptureFixture, address: str) -> None:
    with notifier({"NOTIFY_SOCKET": address}) as (made, _, _):
        made.ready()
        made.stopping()
    assert len(caplog.records) == 1


def test_service_goes_on_without_a_descriptor_for_the_notifier(
    ear: Ear, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> socket.socket:
        raise os_error(24)

    with Reactor() as reactor:
        monkeypatch.setattr(socket, "socket", refuse)
        made = Notifier(reactor, {"NOTIFY_SOCKET": ear.address})
        made.ready()
        made.close()
        monkeypatch.undo()
    assert "Too many open files; serving without it" in caplog.text


def test_closed_notifier_sends_nothing(ear: Ear) -> None:
    with notifier({"NOTIFY_SOCKET": ear.address, "WATCHDOG_USEC": "3000000"}) as (made, reactor, clock):
        made.ready()
        made.close()
        ear.all()
        made.stopping()
        clock.advance(10)
        turn_idle(reactor)
        assert ear.all() == []
