"""The units under a separate systemd, in separate namespaces, on a temporary copy of this machine's files.

Nothing of the machine is started or changed: the root is an overlay, its `*.wants` are empty, there is no network but a
loopback of its own. Needs root. What can't be had is skipped with its reason; once systemd runs, all must be well.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.echo7.deploy.units import DEPLOY, OWN_SOCKETS, need_systemd
from tests.support.basics import PATIENCE_S, PROJECT
from tests.support.daemon import Installation, readable_copy

SYSTEMD = pathlib.Path("/lib/systemd/systemd")
MOST_S = 120
BEGUN, ENDED = "systemd runs", "all is well"

MACHINE = r"""
set -e
folder=$1 cgroup=$2 python=$3 installation=$4 deploy=$5
echo $$ >"$cgroup/cgroup.procs"
mount --make-rprivate /
mount -t tmpfs tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
root=$folder/root
mkdir -p "$root/opt/echo7/bin"
ln -sf "$python" "$root/opt/echo7/bin/python3"
cp -r "$installation/reactor" "$installation/echo7" "$root/opt/echo7"
rm -rf "$root"/etc/systemd/system/* "$root"/usr/lib/systemd/system/*.wants "$root"/lib/systemd/system/*.wants
: >"$root/etc/fstab"
cp "$deploy/echo7.toml" "$root/etc"
units=$root/etc/systemd/system
cp "$deploy/echo7.service" "$deploy/echo7.socket" "$root/etc/systemd/system"
mkdir "$root/etc/systemd/system/echo7.service.d"
printf '[Service]\nEnvironment=PYTHONPATH=/opt/echo7\nWatchdogSec=2\n' >"$units/echo7.service.d/here.conf"
cat >"$root/etc/systemd/system/trial.service" <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
TimeoutStartSec=90
ExecStart=$python /trial.py
StandardOutput=file:/trial.log
StandardError=append:/trial.log
ExecStopPost=systemctl --no-block --force exit
END
cat >"$root/trial.py"
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
cat >"$root/begin" <<END
set -e
cd "$root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir old
pivot_root . old
umount -l /old
exec env -i container=trial PATH=/usr/sbin:/usr/bin:/sbin:/bin $6 --system --unit=trial.service --log-target=null
END
unshare --fork --pid --net --ipc --uts --cgroup --kill-child sh "$root/begin" >&2 || true
cat /trial.log
"""

TRIAL = r"""
import os, pathlib, signal, socket, subprocess, threading, time

print("systemd runs", flush=True)
subprocess.run("ip link set lo up", shell=True, check=True)


def systemctl(*words):
    return subprocess.run(["systemctl", *words], check=True, capture_output=True, text=True).stdout.strip()


def shown(name):
    return systemctl("show", "--value", "-p", name, "echo7.service")


def ask():
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, 7), 20) as client:
            data, received = os.urandom(1 << 22), bytearray()
            threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR))).start()
            while piece := client.recv(1 << 16):
                received += piece
            assert received == data
    for family, host in ((socket.AF_INET, "127.0.0.9"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(20)
            client.connect((host, 7))
            client.send(b"datagram")
            assert client.recv(100) == b"datagram"


def until(condition):
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


systemctl("start", "echo7.socket")
assert shown("ActiveState") == "inactive", "nobody has called"
ask()  # which starts the service
until(lambda: shown("ActiveState") == "active")

first = shown("MainPID")
lines = pathlib.Path("/proc", first, "status").read_text().splitlines()
status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
assert "0" not in status["Uid"], status["Uid"]
assert {int(status[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
assert os.readlink(f"/proc/{first}/ns/net") != os.readlink("/proc/self/ns/net")

with socket.create_connection(("127.0.0.1", 7), 20) as held:
    systemctl("reload", "echo7.service")
    held.sendall(b"held")
    assert held.recv(4) == b"held"
    ask()
    assert shown("MainPID") == first
    time.sleep(3)  # longer than the watchdog waits
    assert (shown("MainPID"), shown("NRestarts")) == (first, "0")

os.kill(int(first), signal.SIGSTOP)  # a stuck loop
until(lambda: shown("NRestarts") == "1" and shown("ActiveState") == "active")
ask()

again = threading.Thread(target=systemctl, args=("restart", "echo7.service"))
again.start()
while again.is_alive():
    socket.create_connection(("127.0.0.1", 7), 20).close()  # a client that connects meanwhile waits, and isn't refused
    time.sleep(0.01)
ask()

systemctl("stop", "echo7.socket", "echo7.service")
assert (shown("Result"), shown("ExecMainStatus")) == ("success", "0")

if OWN_SOCKETS:
    pathlib.Path("/etc/systemd/system/echo7.socket").unlink()
    pathlib.Path("/etc/systemd/system/echo7.service.d/own.conf").write_text(OWN_SOCKETS)
    pathlib.Path("/etc/echo7.toml").write_text('host = "*"\nworkers = 2\n')
    systemctl("daemon-reload")
    systemctl("start", "echo7.service")
    ask()
    systemctl("reload", "echo7.service")
    ask()
    systemctl("stop", "echo7.service")
    assert (shown("Result"), shown("ExecMainStatus")) == ("success", "0")
print("all is well")
"""


@pytest.fixture
def cgroup() -> Iterator[pathlib.Path]:
    """Yield a cgroup for all processes of the test. Skip the test where none can be made."""
    mounts = [line.split() for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()]
    found = [pathlib.Path(point) for _, point, kind, *_ in mounts if kind == "cgroup2"]
    try:
        made = found[0] / f"echo7-trial-{os.getpid()}"
        made.mkdir()
    except (IndexError, OSError):
        pytest.skip("no cgroup of our own to be had here")
    yield made
    ends_s = time.monotonic() + PATIENCE_S
    while made.exists() and time.monotonic() < ends_s:  # what was in it ends, and then it can go
        for folder in sorted(made.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            made.rmdir()


@pytest.fixture
def installation() -> Iterator[Installation]:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None or not SYSTEMD.exists():
        pytest.skip("needs root, unshare(1) and systemd")
    need_systemd()
    with readable_copy() as found:
        if found.python.startswith(("/home", "/root", "/tmp")):
            pytest.skip("Python lives where the unit can't see it")
        yield found


@pytest.mark.long
def test_service_under_systemd_serves_reloads_is_watched_and_ends(
    installation: Installation, cgroup: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "machine").mkdir()
    command = ["unshare", "--mount", "sh", "-c", MACHINE, "sh", str(tmp_path / "machine"), str(cgroup)]
    command += [installation.python, str(installation.folder), str(DEPLOY), str(SYSTEMD)]
    trial = f"OWN_SOCKETS = {OWN_SOCKETS.read_text()!r}\n{TRIAL}"
    done = subprocess.run(
        command, input=trial, capture_output=True, text=True, timeout=MOST_S, check=False, cwd=PROJECT
    )
    if BEGUN not in done.stdout:
        pytest.skip(f"no systemd of our own here: {json.dumps(done.stderr[-300:])}")
    assert done.stdout.endswith(f"{ENDED}\n"), done.stdout
