"""The systemd units: the sandbox is closed, and the settings fit what echo7 does."""

from __future__ import annotations

import pathlib
import re
import sys
import tomllib

from echo7.settings import OPTIONS
from tests.echo7.deploy.units import DEPLOY, OWN_SOCKETS, SERVICE, SOCKET, allowed_calls, analyze, last, settings, words
from tests.support.basics import PROJECT
from tests.support.daemon import serve_config

MOST_EXPOSURE = 0.8  # of 10; see `systemd-analyze security`
OPTIONS_FILE = DEPLOY / "echo7.toml"
USED = """
    accept4 bind clone close connect epoll_create1 epoll_ctl epoll_wait execve exit_group fcntl futex getpid getrandom
    getsockname getsockopt kill listen mmap openat pipe2 prctl prlimit64 read recvfrom recvmmsg recvmsg rt_sigaction
    rt_sigprocmask sched_getaffinity sendmmsg sendmsg sendto setsockopt shutdown socket socketpair splice wait4 write
""".split()
NEVER_USED = """
    chown chroot clock_settime delete_module init_module io_uring_setup mknodat mkdirat mount open_by_handle_at
    personality pivot_root ptrace reboot renameat2 sched_setscheduler setns setuid setgid symlinkat unlinkat unshare
    userfaultfd bpf keyctl perf_event_open process_vm_readv
""".split()


def test_exposure_is_below_the_limit() -> None:
    """Issue: "`systemd-analyze security --offline` ≤ 0.8, and a test gates the score"."""
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE * 10:.0f}", "--no-pager", SERVICE)
    assert done.returncode == 0, done.stdout
    [score] = re.findall(r"exposure level for echo7.service: ([\d.]+)", done.stdout)
    assert float(score) <= MOST_EXPOSURE


def test_unit_without_a_sandbox_is_above_the_limit(tmp_path: pathlib.Path) -> None:
    """A unit with only a command is above the limit, and the exit status shows it."""
    bare = tmp_path / "bare.service"
    bare.write_text(f"[Service]\nExecStart={sys.executable}\n")
    assert analyze("security", "--offline=true", "--threshold=8", "--no-pager", bare).returncode != 0


def test_units_have_no_systemd_warnings(tmp_path: pathlib.Path) -> None:
    """With this checkout in place of the installed program."""
    program = last(settings(SERVICE), "ExecStart").split()[0]
    (tmp_path / SERVICE.name).write_text(SERVICE.read_text().replace(program, sys.executable))
    (tmp_path / SOCKET.name).write_text(SOCKET.read_text())
    (tmp_path / "echo7.service.d").mkdir()
    for drop_in in (None, OWN_SOCKETS):
        if drop_in is not None:
            (tmp_path / "echo7.service.d" / drop_in.name).write_text(drop_in.read_text())
        done = analyze("verify", "--man=no", tmp_path / SERVICE.name, tmp_path / SOCKET.name)
        assert not [line for line in done.stderr.splitlines() if "echo7" in line or "own-sockets" in line]


def test_filter_allows_used_calls_and_no_others() -> None:
    """test_sandbox.py runs the service under the filter; this test shows the reason when that fails."""
    allowed = allowed_calls(settings(SERVICE))
    assert not set(USED) - allowed
    assert not set(NEVER_USED) & allowed


def test_unit_with_activation_has_neither_capability_nor_network() -> None:
    unit = settings(SERVICE)
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == []
    assert last(unit, "PrivateNetwork") == "yes"
    assert words(unit, "RestrictAddressFamilies") == ["AF_UNIX"]
    assert last(unit, "Sockets") == SOCKET.name


def test_unit_without_activation_has_one_capability() -> None:
    unit = settings(SERVICE, OWN_SOCKETS)
    assert words(unit, "CapabilityBoundingSet") == words(unit, "AmbientCapabilities") == ["CAP_NET_BIND_SERVICE"]
    assert unit["Sockets"] == []


def test_socket_unit_has_port_7_over_both() -> None:
    unit = settings(SOCKET)
    assert unit["ListenStream"] == unit["ListenDatagram"] == ["7"]
    assert last(unit, "BindIPv6Only") == "both"


def test_unit_starts_the_program_with_options_that_exist() -> None:
    python, _, package, *arguments = last(settings(SERVICE), "ExecStart").split()
    assert (pathlib.PurePath(python).name, package) == ("python3", "echo7")
    assert arguments[-2:] == ["--config", f"/etc/{OPTIONS_FILE.name}"]
    assert arguments[0] == "serve"
    serve_config(*arguments[1:-1], str(OPTIONS_FILE))


def test_systemd_waits_longer_than_the_service_drains() -> None:
    unit, config = settings(SERVICE), serve_config("--config", str(OPTIONS_FILE))
    assert int(last(unit, "TimeoutStopSec")) > 2 * config.drain_timeout_s
    assert (last(unit, "Type"), int(last(unit, "WatchdogSec"))) == ("notify", 10)
    assert last(unit, "ExecReload") == "/bin/kill -HUP $MAINPID"


def test_every_option_in_the_example_file_exists_and_has_a_valid_value(tmp_path: pathlib.Path) -> None:
    """The options are comments there; the test removes the comment signs."""
    text = re.sub(r"^# (?=[a-z-]+ = )", "", OPTIONS_FILE.read_text(), flags=re.MULTILINE)
    document = tomllib.loads(text)
    assert len(document) >= 6
    assert document.keys() <= {option.key for option in OPTIONS.values()}
    file = tmp_path / "all.toml"
    file.write_text(text)
    plain, shown = serve_config()._asdict(), serve_config("--config", str(file))._asdict()
    assert {name for name in plain if plain[name] != shown[name]} <= {"max_connections", "socket_buffer_bytes"}


def test_built_package_has_the_deploy_files() -> None:
    """`pip install .` ships echo7/deploy, and puts the manual page where man(1) finds it."""
    document = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "deploy/*" in document["package-data"]["echo7"]
    assert not [path for path in DEPLOY.iterdir() if path.is_dir()], "deploy/* doesn't reach into folders"
    assert document["data-files"]["share/man/man1"] == ["echo7/deploy/echo7.1"]
