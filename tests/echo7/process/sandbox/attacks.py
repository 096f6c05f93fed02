"""What code that controls a process would try. Each attack raises OSError if it is refused.

Many arguments make no sense, so that an attack that succeeds harms neither the tests nor the machine.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

from echo7.policy.echo import StreamEcho
from echo7.process.sandbox.calls import NUMBERS, PROCESSORS
from reactor.connection import Connection

COLUMN = PROCESSORS.get(os.uname().machine, (0, 0))[0]
# More numbers, by processor.
OTHERS = {
    "execveat": (322, 281), "pidfd_send_signal": (424, 424), "rt_sigqueueinfo": (129, 138), "memfd_create": (319, 279),
    "sched_setaffinity": (203, 122), "tkill": (200, 130), "setpriority": (141, 140), "openat2": (437, 437),
    "inotify_init1": (294, 26), "pidfd_open": (434, 434),
}  # fmt: skip
LIBRARY = ctypes.CDLL(None, use_errno=True)
PTRACE_PEEKDATA, CLONE_FS, CLONE_NEWUSER, PR_SET_DUMPABLE, TIOCSTI, FIOSETOWN = 2, 0x200, 0x1000_0000, 4, 0x5412, 0x8901
QUEUED = bytes(8) + bytes([255] * 4) + bytes(116)  # struct siginfo of sigqueue(3)
AT_EMPTY_PATH, MPTCP, X32_GETPID = 0x1000, 262, 0x4000_0000 + 39
# a file that the attacks may damage, if they can, and a name beside it
VICTIM = os.environ.get("VICTIM", "/nowhere/to/be/found")
NEW = VICTIM + "-new"
# a descriptor
ABSENT = 1_000_000
TRUE = b"/bin/true"


def call(name: str, *arguments: int | bytes | None) -> int:
    """Make a system call. Raise OSError."""
    number = {**NUMBERS, **OTHERS}[name][COLUMN]
    if number is None:
        raise OSError(errno.ENOSYS, "this processor doesn't have it")
    return raw(number, *arguments)


def raw(number: int, *arguments: int | bytes | None) -> int:
    words = [each if isinstance(each, bytes) else ctypes.c_long(each or 0) for each in arguments]
    result: int = LIBRARY.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), name_of(ctypes.get_errno()))
    return result


def name_of(code: int | None) -> str:
    return errno.errorcode.get(code or 0, str(code))


def _connect(family: int, address: object, protocol: int = 0) -> None:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
        sock.connect(address)  # type: ignore[arg-type]


def _bind(kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _pidfd_signal() -> None:
    call("pidfd_send_signal", os.pidfd_open(os.getppid()), 0, 0, 0)


def _run_from_memory() -> None:
    call("execveat", call("memfd_create", b"x", 0), b"", 0, 0, AT_EMPTY_PATH)


def _send_to(kind: int, flags: int) -> None:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.sendto(b"x", flags, ("127.0.0.1", 9))


def _send_message(flags: int) -> None:
    with socket.socket() as sock:
        sock.sendmsg([b"x"], [], flags, ("127.0.0.1", 9))


PARENT = os.getppid
# Refused to every process.
ALWAYS: dict[str, Callable[[], object]] = {
    # files
    "create a file": lambda: os.open(NEW, os.O_WRONLY | os.O_CREAT),
    "write to an existing file": lambda: os.open(VICTIM, os.O_WRONLY),
    "make a folder": lambda: os.mkdir(NEW),
    "make a link": lambda: os.symlink("x", NEW),
    "make a second name": lambda: os.link(VICTIM, NEW),
    "make a pipe": lambda: os.mkfifo(NEW),
    "rename a file": lambda: os.rename(VICTIM, NEW),
    "remove a file": lambda: os.unlink(VICTIM),
    "change a mode": lambda: os.chmod(VICTIM, 0o644),
    "change a mode by descriptor": lambda: os.fchmod(ABSENT, 0o644),
    "change an owner": lambda: os.chown(VICTIM, os.getuid(), os.getgid()),
    "change times": lambda: os.utime(VICTIM),
    "set an attribute": lambda: os.setxattr(VICTIM, "user.x", b"x"),
    "cut a file by name": lambda: os.truncate(VICTIM, os.stat(VICTIM).st_size),
    "open by handle": lambda: call("open_by_handle_at", 0, 0, 0),
    # the network
    "connect to a TCP port": lambda: _connect(socket.AF_INET, ("127.0.0.1", 9)),
    "connect over IPv6": lambda: _connect(socket.AF_INET6, ("::1", 9)),
    "connect by sending": lambda: _send_to(socket.SOCK_STREAM, socket.MSG_FASTOPEN),
    "connect by sending a message": lambda: _send_message(socket.MSG_FASTOPEN),
    "connect to a local service": lambda: _connect(socket.AF_UNIX, "/run/systemd/private"),
    "forge packets": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP),
    "connect by MPTCP": lambda: _connect(socket.AF_INET, ("127.0.0.1", 9), MPTCP),
    "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM),
    "open a vsock": lambda: socket.socket(40, socket.SOCK_STREAM),
    "use the kernel's cryptography": lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET),
    # other processes
    "signal the parent": lambda: os.kill(PARENT(), 0),
    "signal a thread of the parent": lambda: call("tgkill", PARENT(), PARENT(), 0),
    "signal a thread by number": lambda: call("tkill", PARENT(), 0),
    "signal the parent by descriptor": _pidfd_signal,
    "send a value to the parent": lambda: call("rt_sigqueueinfo", PARENT(), 0, QUEUED),
    "let the kernel signal the parent": lambda: fcntl.fcntl(ABSENT, fcntl.F_SETOWN, PARENT()),
    "choose the signal": lambda: fcntl.fcntl(ABSENT, 10, signal.SIGKILL),
    "trace the parent": lambda: call("ptrace", PTRACE_PEEKDATA, PARENT(), 0, 0),
    "read the parent's memory": lambda: call("process_vm_readv", PARENT(), 0, 0, 0, 0, 0),
    "write the parent's memory": lambda: call("process_vm_writev", PARENT(), 0, 0, 0, 0, 0),
    "copy a descriptor of the parent": lambda: call("pidfd_getfd", 0, 0, 0),
    "change the parent's limits": lambda: call("prlimit64", PARENT(), 7, 0, bytes(16)),
    "share memory": lambda: call("shmget", 0, 0, 0),
    "open a queue of messages": lambda: call("msgget", 1, 0),
    # namespaces and the machine
    "fork into a user namespace": lambda: call("clone", CLONE_NEWUSER | CLONE_FS, 0, 0, 0, 0),
    "fork by a call that can't be checked": lambda: call("clone3", 0, 0),
    "enter a namespace": lambda: call("setns", 0, 0),
    "mount": lambda: call("mount", 0, 0, 0, 0, 0),
    "open a mount": lambda: call("fsopen", 0, 0),
    "change the root": lambda: os.chroot("/"),
    "load a program into the kernel": lambda: call("bpf", 0, 0, 0),
    "use the second system call interface": lambda: call("io_uring_setup", 1, bytes(128)),
    "handle page faults": lambda: call("userfaultfd", 0),
    "profile": lambda: call("perf_event_open", bytes(128), 0, -1, -1, 0),
    "use a key ring": lambda: call("keyctl", 0, 0, 0),
    "change the personality": lambda: call("personality", 0xFFFF_FFFF),
    "set the host's name": lambda: call("sethostname", 0, -1),
    "put input into a terminal": lambda: fcntl.ioctl(ABSENT, TIOCSTI, b"x"),
    "call with 32-bit pointers": lambda: raw(X32_GETPID),
    # last: without restrictions, it takes root's rights away
    "make a user namespace": lambda: call("unshare", CLONE_NEWUSER),
}  # fmt: skip
# Refused to a process that only serves.
SERVING: dict[str, Callable[[], object]] = {
    "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "read a file by the newer call": lambda: call("openat2", -100, b"/etc/passwd", bytes(24), 24),
    "read its own memory as a file": lambda: os.open("/proc/self/mem", os.O_RDWR),
    "look at a file": lambda: os.stat("/etc/passwd"),
    "read a link": lambda: os.readlink("/proc/self/exe"),
    "list a folder": lambda: os.listdir("/"),
    "watch a folder": lambda: call("inotify_init1", 0),
    "open a device": lambda: os.open("/dev/null", os.O_RDWR),
    "run a program": lambda: os.execv(TRUE, [TRUE]),
    "run a program by descriptor": lambda: call("execveat", 0, TRUE, 0, 0, 0),
    "run a program from memory": _run_from_memory,
    "start a program": lambda: subprocess.run([TRUE], check=False),
    "spawn a program": lambda: os.posix_spawn(TRUE, [TRUE], {}),
    "fork": _fork,
    "open a TCP socket": lambda: socket.socket(),
    "open a UDP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "open a pair of sockets": lambda: socket.socketpair(),
    "connect to a local name": lambda: _connect(socket.AF_UNIX, "\0echo7-attack"),
    "listen on another port": lambda: _bind(socket.SOCK_STREAM),
    "take another UDP port": lambda: _bind(socket.SOCK_DGRAM),
    "change the parent's priority": lambda: call("setpriority", 0, PARENT(), 0),
    "change the parent's processors": lambda: call("sched_setaffinity", PARENT(), 8, bytes([255] * 8)),
    "find the parent": lambda: call("pidfd_open", PARENT(), 0),
    "be traceable again": lambda: call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0),
    "own a descriptor by ioctl": lambda: fcntl.ioctl(ABSENT, FIOSETOWN, bytes(8)),
    "become another user": lambda: os.setuid(os.getuid()),
    "use a system call that doesn't exist yet": lambda: raw(600),
}  # fmt: skip
EVERY = {**ALWAYS, **SERVING}
REFUSALS = {"EPERM", "EACCES", "ENOSYS"}


def attempt(name: str) -> str:
    """Attack; return the error's name, or "done"."""
    try:
        EVERY[name]()
    except OSError as error:
        return name_of(error.errno)
    return "done"


def take_over() -> None:
    """Make this process obey its clients: one that sends the name of an attack gets its result."""

    def obey(self: Connection, data: bytes | bytearray | memoryview) -> None:
        name = bytes(data).decode()
        if name == "raise":
            raise RuntimeError("an error of the program")
        self.write(attempt(name).encode() if name in EVERY else data)

    StreamEcho.data_received = staticmethod(obey)


if __name__ == "__main__":
    from echo7.process.sandbox import Sandbox

    restriction = Sandbox("auto")
    if sys.argv[1] == "serving":
        restriction.restrict_serving()
    elif sys.argv[1] == "in charge":
        restriction.restrict_in_charge([], children=False)
    for name in EVERY if sys.argv[1] == "serving" else ALWAYS:
        print(name, attempt(name), sep="\t", flush=True)
