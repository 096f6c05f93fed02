"""`--user`: root binds, an unprivileged user serves. The tests with real processes need root."""

from __future__ import annotations

import argparse
import errno
import os
import pathlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable

import pytest

from echo7.process import StartError, privileges
from echo7.process.privileges import Identity, become, identity
from echo7.process.service import drop_privileges
from reactor.sockets.errors import os_error
from tests.echo7.test_cli import only_line, refused
from tests.support.basics import PATIENCE_S, quiet_port
from tests.support.daemon import EchoProcess, Installation, WorkersProcess

if os.name != "posix":
    pytest.skip("this system has no users to switch to", allow_module_level=True)

NOBODY = 65_534
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
SETPRIV = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv(1)")


def rights(pid: int) -> dict[str, list[str]]:
    """What proc(5) shows of a process."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def assert_powerless(pid: int, user_id: int = NOBODY, group_id: int = NOBODY) -> None:
    found = rights(pid)
    assert found["Uid"] == [str(user_id)] * 4
    assert found["Gid"] == [str(group_id)] * 4
    assert found["Groups"] == []
    assert {int(found[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert found["NoNewPrivs"] == ["1"]


def low_port() -> int:
    """Return a free port that only root may bind."""
    for port in range(600, 1000):
        try:
            with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
    pytest.skip("no low port is free")


# ---------------------------------------------------------------- real processes


def test_root_binds_a_low_port_and_nobody_serves_it(installation: Installation) -> None:
    port = low_port()
    with EchoProcess("--host", "127.0.0.1", "--user", "nobody", port=port, installation=installation) as echo:
        assert_powerless(echo.process.pid)
        with echo.connect() as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
        assert echo.finish() == 0


def test_group_may_be_named_and_a_number_needs_no_entry(installation: Installation) -> None:
    with EchoProcess("--host", "127.0.0.1", "--user", "4711:4712", installation=installation) as echo:
        assert_powerless(echo.process.pid, 4711, 4712)


def test_workers_and_supervisor_have_no_privileges(installation: Installation) -> None:
    with WorkersProcess("--host", "127.0.0.1", "--user", "nobody", installation=installation) as echo:
        for pid in (echo.process.pid, *echo.pids.values()):
            assert_powerless(pid)
        assert echo.finish() == 0


@pytest.mark.parametrize(
    "options",
    [[], ["--busy-poll", "100", "--idle-timeout", "60"], ["--slow-callback", "50"], ["--plain"]],
    ids=["default", "busy poll and idle timeout", "slow callback", "plain"],
)
def test_workers_serve_from_code_that_only_root_may_read(installation: Installation, options: list[str]) -> None:
    """All that a worker needs is imported before privileges are dropped."""
    installation.folder.chmod(0o700)
    try:
        with WorkersProcess("--host", "127.0.0.1", "--user", "nobody", *options, installation=installation) as echo:
            with echo.connect() as client:
                client.sendall(b"hello")
                assert client.recv(5) == b"hello"
            echo.process.send_signal(signal.SIGUSR2)
            echo.next_line("dump")
            assert echo.finish() == 0
        assert not {line["event"] for line in echo.lines} & {"failed", "worker_ended", "callback_raised"}
    finally:
        installation.folder.chmod(0o755)


@SETPRIV
def test_reversible_drop_stops_the_start(installation: Installation) -> None:
    """With this bit, the kernel keeps all capabilities over the change of user."""
    port = low_port()
    with EchoProcess(
        "--host", "127.0.0.1", "--user", "nobody", port=port, installation=installation, wait=False,
        prefix=["setpriv", "--securebits", "+no_setuid_fixup"],
    ) as echo:  # fmt: skip
        line = echo.next_line("start_failed")
        assert "this process could still become the user root again, so nothing is served" in line["message"]
        assert echo.process.wait(PATIENCE_S) == 1
        assert "listening" not in {each["event"] for each in echo.lines}


@SETPRIV
def test_another_user_without_privilege_costs_one_line_and_status_1(installation: Installation) -> None:
    with EchoProcess(
        "--user",
        "nobody",
        installation=installation,
        wait=False,
        prefix=["setpriv", "--reuid=4711", "--regid=4711", "--clear-groups"],
    ) as echo:
        assert echo.next_line("start_failed")["message"] == (
            "cannot become nobody: Operation not permitted; --user needs root at the start: use sudo, or leave it out"
        )
        assert echo.process.wait(PATIENCE_S) == 1
        assert len(echo.lines) == 1


@SETPRIV
def test_process_that_is_that_user_already_needs_no_privilege(installation: Installation) -> None:
    prefix = ["setpriv", "--reuid=4711", "--regid=4711", "--clear-groups"]
    with EchoProcess("--host", "127.0.0.1", "--user", "4711:4711", installation=installation, prefix=prefix) as echo:
        assert_powerless(echo.process.pid, 4711, 4711)
        assert echo.finish() == 0


@SETPRIV
def test_unprivileged_start_needs_only_a_free_port(installation: Installation) -> None:
    prefix = ["setpriv", "--reuid=4711", "--regid=4711", "--clear-groups", "--bounding-set=-all"]
    with EchoProcess("--host", "*", installation=installation, prefix=prefix) as echo:
        assert {line["event"] for line in echo.lines} == {"limits", "listening"}
        assert echo.finish() == 0


@ROOT_ONLY
@pytest.mark.parametrize(
    ("arguments", "warned"),
    [(["--host", "*"], 1), (["--host", "*", "--workers", "2"], 1), ([], 0), (["--host", "*", "--user", "nobody"], 0)],
    ids=str,
)
def test_root_that_serves_other_machines_is_warned_once(
    installation: Installation, arguments: list[str], warned: int
) -> None:
    with EchoProcess(*arguments, installation=installation) as echo:
        assert echo.finish() == 0
        told = [line for line in echo.lines if line["event"] == "serving_as_root"]
        assert [line["level"] for line in told] == ["warning"] * warned
        assert all("--user nobody" in line["message"] for line in told)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no-such-user", "there is no user 'no-such-user'; check the spelling"),
        ("nobody:no-such-group", "there is no group 'no-such-group'; check the spelling"),
        ("no\0body", "there is no user"),
        ("", "there is no user ''"),
        ("nobody:", "there is no group ''"),
        ("-1", "there is no user '-1'"),
        ("4294967295", "there is no user '4294967295'"),
        ("4711", "user 4711 has no entry, so its group isn't known; give 4711:GROUP"),
        ("root", "'root' has root's own rights; name a user without them"),
        ("0", "'0' has root's own rights"),
        ("nobody:0", "'nobody:0' has root's own rights"),
        ("nobody:root", "'nobody:root' has root's own rights"),
    ],
)
def test_unknown_or_privileged_user_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    assert f"argument --user: {reason}" in refused(capsys, f"--user={text}")


def test_unknown_user_is_refused_before_anything_is_bound() -> None:
    """The port is in use: a service that binds first would report that."""
    port = quiet_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        with EchoProcess("--user", "no-such-user", port=port, wait=False) as echo:
            assert echo.process.stderr is not None
            line = only_line(echo.process.stderr.read())
            assert echo.process.wait(PATIENCE_S) == 2
    assert "there is no user 'no-such-user'" in line


def test_user_by_name_and_by_number_are_the_same() -> None:
    import pwd

    nobody = pwd.getpwnam("nobody")
    assert identity("nobody") == Identity(nobody.pw_uid, nobody.pw_gid, "nobody")
    assert identity(str(nobody.pw_uid))[:2] == identity("nobody")[:2]
    assert identity("nobody:4712") == Identity(nobody.pw_uid, 4712, "nobody:4712")


# ---------------------------------------------------------------- the rules, without the kernel


class Kernel:
    """Simulates the system calls for user and group, and records them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, allowed: bool = True, returns: str = "") -> None:
        self.calls: list[str] = []
        self.ids = {"uid": 0, "gid": 0}
        self.allowed, self.returns = allowed, returns
        for name in ("setgroups", "setuid", "setgid", "seteuid", "setegid"):
            monkeypatch.setattr(os, name, self.call(name))
        for name in ("getuid", "geteuid", "getgid", "getegid"):
            monkeypatch.setattr(os, name, lambda name=name: self.ids[name.removeprefix("get").removeprefix("e")])
        monkeypatch.setattr(privileges, "no_new_privileges", lambda: lambda: self.calls.append("no_new_privs"))

    def call(self, name: str) -> Callable[[object], None]:
        def called(value: object) -> None:
            self.calls.append(f"{name} {value}")
            if not self.allowed or (value == 0 and self.ids["uid"] and name != self.returns):
                raise os_error(errno.EPERM)
            if isinstance(value, int):
                self.ids[name.removeprefix("set").removeprefix("e")] = value

        return called


USER = Identity(4711, 4712, "alice")
TRIES = ["setuid 0", "seteuid 0", "setgid 0", "setegid 0"]


def test_drop_of_groups_comes_first_the_user_last_and_then_root_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    become(USER)
    assert kernel.calls == ["setgroups []", "setgid 4712", "setuid 4711", *TRIES, "no_new_privs"]


def test_restart_drops_nothing_but_checks_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    become(USER)
    kernel.calls.clear()
    become(USER)
    assert kernel.calls == [*TRIES, "no_new_privs"]


@pytest.mark.parametrize(
    ("call", "name"), [("setuid", "user"), ("seteuid", "user"), ("setgid", "group"), ("setegid", "group")]
)
def test_any_way_back_to_root_is_refused(monkeypatch: pytest.MonkeyPatch, call: str, name: str) -> None:
    Kernel(monkeypatch, returns=call)
    with pytest.raises(StartError, match=f"as alice this process could still become the {name} root again"):
        become(USER)


def test_process_without_the_right_to_drop_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, allowed=False)
    with pytest.raises(StartError, match="cannot become alice: Operation not permitted; --user needs root"):
        become(USER)


def test_system_without_prctl_skips_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    monkeypatch.setattr(ctypes, "CDLL", lambda name, **options: object())
    assert privileges.no_new_privileges()() == 0


def test_programs_started_later_gain_no_privileges() -> None:
    """In a child, because it can't be undone."""
    program = """if True:
        from echo7.process import privileges
        privileges.no_new_privileges()()
        print(open("/proc/self/status").read())
    """
    import sys

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    if "NoNewPrivs" not in done.stdout:
        pytest.skip("this kernel doesn't tell")
    assert "NoNewPrivs:\t1" in done.stdout


def test_unknown_user_is_an_argument_error() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="there is no user 'x y'"):
        identity("x y")


def test_drop_that_fails_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    user = identity("4711:4712")
    Kernel(monkeypatch)
    drop_privileges(user, [])
    Kernel(monkeypatch, allowed=False)
    with pytest.raises(StartError, match="cannot become 4711:4712"):
        drop_privileges(user, [])
