"""What each kind of process may do on Linux.

Neither restriction needs privileges, both pass to children and through exec(2), and neither can be undone. So a new
generation has those of the one before, and must not add more: Linux allows 16 layers of Landlock, and each filter slows
every system call. It asks first, by an option of prctl(2) that no kernel has and that only our filter answers.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping

from echo7.process.sandbox import Held, landlock, seccomp
from echo7.process.sandbox.calls import NEVER, PROCESSORS, SERVING
from echo7.process.sandbox.kernel import Kernel
from echo7.process.sandbox.seccomp import ALLOW, REFUSE, UNKNOWN, Argument, Rule

PR_SET_NAME = 15
# a thread; a namespace of any kind (clone(2))
CLONE_THREAD, CLONE_NEW = 0x0001_0000, 0x7E02_0000
# the kernel would signal another process (fcntl(2))
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15
FIONREAD, FIONBIO, TIOCOUTQ, TCGETS = 0x541B, 0x5421, 0x5411, 0x5401
# text for a terminal to read, as if its user had typed it
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
# connects by sending (tcp(7)), which Landlock doesn't see
MSG_FASTOPEN = 0x2000_0000
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_STREAM, SOCK_DGRAM, SOCK_TYPE = 1, 2, 0xF

# First in a filter, because they are frequent. The kernel caches the answers to calls that are always allowed.
NO_CONNECTION: Mapping[str, Rule] = {
    name: [[Argument(place, (0,), mask=MSG_FASTOPEN)]]
    for name, place in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3))
}
NO_SIGNALS = [[Argument(1, (F_SETOWN, F_SETSIG, F_SETOWN_EX), wanted=False)]]
IN_CHARGE: Mapping[str, Rule] = {
    **NO_CONNECTION,
    **dict.fromkeys(NEVER, REFUSE),
    "clone": [[Argument(0, (0,), mask=CLONE_NEW)]],
    "clone3": UNKNOWN,
    "fcntl": NO_SIGNALS,
    "ioctl": [[Argument(1, (TIOCSTI, TIOCLINUX), wanted=False)]],
    "prlimit64": [[Argument(0, (0,))]],
    "socket": [
        # Landlock knows no stream but TCP
        [
            Argument(0, (AF_INET, AF_INET6)),
            Argument(1, (SOCK_STREAM, SOCK_DGRAM), mask=SOCK_TYPE),
            Argument(2, (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP)),
        ],
        # to notify systemd; a stream would reach services that run programs (D-Bus, containers)
        [Argument(0, (AF_UNIX,)), Argument(1, (SOCK_DGRAM,), mask=SOCK_TYPE)],
        # names of hosts need it
        [Argument(0, (AF_NETLINK,)), Argument(2, (0,))],
    ],
}
# what a restart opens: the second may be a terminal
WRITTEN_IN_CHARGE = (os.devnull, "/dev/fd/2")
LARGE_PRIME = 2**30 - 35
# Above every error number that a kernel has. The answer adds the version of Landlock.
HELD = 1000


def serving(pid: int) -> Mapping[str, Rule]:
    """Return what the process `pid` may call when it only serves. It may signal itself, and start threads."""
    return {
        **NO_CONNECTION,
        **dict.fromkeys(SERVING, ALLOW),
        "clone": [[Argument(0, (CLONE_THREAD,), mask=CLONE_THREAD | CLONE_NEW)]],
        "clone3": UNKNOWN,
        "fcntl": NO_SIGNALS,
        "ioctl": [[Argument(1, (FIONREAD, FIONBIO, TIOCOUTQ, TCGETS))]],
        "kill": [[Argument(0, (pid,))]],
        "prctl": [[Argument(0, (PR_SET_NAME,))]],
        "prlimit64": [[Argument(0, (0, pid))]],
        "tgkill": [[Argument(0, (pid,))]],
    }


class Linux:
    """Restricts this process with what its kernel has."""

    __slots__ = ("_kernel", "_processor")

    def __init__(self) -> None:
        self._kernel = Kernel()
        machine = os.uname().machine
        # a Python of 32 bits has other numbers
        self._processor = machine if machine in PROCESSORS and sys.maxsize > 2**32 else None

    def restrict_in_charge(self, written: Iterable[str], children: bool) -> Held:
        """Restrict the process in charge: it writes no file but `written`, makes no TCP connection, traces nothing.

        Without `children` from before, it can signal only processes that it starts.
        """
        question = self._question()
        # systemd may want to be notified at an abstract address, so that scope stays
        taken = landlock.Taken(
            network=landlock.CONNECT_TCP,
            scopes=0 if children else landlock.SIGNALS,
            kept=landlock.FOR_READING,
            written=(*WRITTEN_IN_CHARGE, *written),
        )
        return self._held(question) or self.restrict(taken, IN_CHARGE, ALLOW, question)

    def restrict_serving(self, pid: int) -> Held:
        """Restrict this process, `pid`, to its open sockets."""
        return self.restrict(landlock.Taken(), serving(pid), REFUSE)

    def restrict(self, taken: landlock.Taken, rules: Mapping[str, Rule], others: int, question: int = 0) -> Held:
        """Restrict this process permanently."""
        self._kernel.protect()
        version = landlock.restrict(self._kernel, taken)
        if self._processor is None:
            return Held(version)
        program = seccomp.program(self._processor, rules, others, question, HELD + version)
        return Held(version, seccomp.load(self._kernel, self._processor, program))

    def _question(self) -> int:
        """Return an option of prctl(2) that no kernel has, and that is another one for another filter."""
        text = b"" if self._processor is None else seccomp.program(self._processor, IN_CHARGE, ALLOW)
        return int.from_bytes(text, "little") % LARGE_PRIME + LARGE_PRIME

    def _held(self, question: int) -> Held | None:
        try:
            self._kernel.prctl(question, 0, 0, 0, 0)
        except OSError as error:
            if error.errno is not None and error.errno >= HELD:
                # exec(2) has undone a part of `protect`
                self._kernel.protect()
                return Held(error.errno - HELD, seccomp=True)
        return None
