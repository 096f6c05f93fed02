"""Drop root's privileges permanently, once the port is bound.

Law: an unknown user is refused before anything is bound. The drop must be permanent: the process tries to become root
again, and if that works, it serves nothing. All other groups are dropped too. No program started from here can gain
privileges by a set-user-ID bit (PR_SET_NO_NEW_PRIVS), and no process of the user can trace this one (PR_SET_DUMPABLE).

The kernel clears the capabilities when no user ID is 0 any more (capabilities(7)).
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from echo7.process import StartError

try:
    import grp
    import pwd
except ImportError:  # pragma: no cover - Windows has neither
    grp = pwd = None  # type: ignore[assignment]

SUPERUSER = 0
T = TypeVar("T")


class Identity(NamedTuple):
    """A user, and its only group. `name` is as the operator gave it."""

    user_id: int
    group_id: int
    name: str


def identity(text: str) -> Identity:
    """Look up `NAME[:GROUP]`, each a name or a number. Raise ArgumentTypeError."""
    if pwd is None:  # pragma: no cover - Windows
        raise argparse.ArgumentTypeError("this system has no users to switch to; leave it out")
    name, colon, group = text.partition(":")
    user = _entry(name, "user", "passwd", pwd.getpwnam, pwd.getpwuid)
    user_id, group_id = (user.pw_uid, user.pw_gid) if isinstance(user, pwd.struct_passwd) else (user, None)
    if colon:
        found = _entry(group, "group", "group", grp.getgrnam, grp.getgrgid)
        group_id = found.gr_gid if isinstance(found, grp.struct_group) else found
    if group_id is None:
        raise argparse.ArgumentTypeError(f"user {name} has no entry, so its group isn't known; give {name}:GROUP")
    if SUPERUSER in (user_id, group_id):
        raise argparse.ArgumentTypeError(f"{text!r} has root's own rights; name a user without them, such as nobody")
    return Identity(user_id, group_id, text)


def become(user: Identity) -> None:
    """Drop root privileges permanently and become `user`. Raise StartError; then serve nothing.

    After a restart, the process is that user already: it drops nothing, but the checks are the same.
    """
    # looked up now: the user may have no access to Python's files
    gain_nothing_new = no_new_privileges()
    if (os.getuid(), os.geteuid(), os.getgid(), os.getegid()) != (user.user_id,) * 2 + (user.group_id,) * 2:
        try:
            os.setgroups([])
            os.setgid(user.group_id)
            # last, because it ends the right to the other calls; for root, it changes all three IDs (setuid(2))
            os.setuid(user.user_id)
        except OSError as error:
            raise StartError(
                f"cannot become {user.name}: {error.strerror}; "
                "--user needs root at the start: use sudo, or leave it out"
            ) from None
    _refuse_if_root_can_return(user)
    gain_nothing_new()


def _entry(name: str, kind: str, database: str, by_name: Callable[[str], T], by_id: Callable[[int], T]) -> T | int:
    """Return an entry of passwd or group by its name or number; the number if it has no entry."""
    # ValueError: a NUL in the name
    with contextlib.suppress(KeyError, ValueError):
        return by_name(name)
    # the highest number means "no change" to setresuid(2)
    if not (name.isascii() and name.isdigit() and len(name) <= 10 and int(name) < 2**32 - 1):
        raise argparse.ArgumentTypeError(
            f"there is no {kind} {name!r}; check the spelling ('getent {database}' lists them), or make one"
        )
    with contextlib.suppress(KeyError):
        return by_id(int(name))
    return int(name)


def _refuse_if_root_can_return(user: Identity) -> None:
    for call, name in ((os.setuid, "user"), (os.seteuid, "user"), (os.setgid, "group"), (os.setegid, "group")):
        try:
            call(SUPERUSER)
        except OSError:
            continue
        raise StartError(
            f"as {user.name} this process could still become the {name} root again, so nothing is served: "
            "something keeps capabilities over a change of user ('capsh --print' shows the securebits); "
            "start without it"
        )


def no_new_privileges() -> Callable[[], object]:
    """Return a function that keeps it from gaining any (`Kernel.protect`). Without prctl(2), it does nothing."""
    try:
        from echo7.process.sandbox.kernel import Kernel

        return Kernel().protect
    # no ctypes, or a system without prctl: the drop is permanent without it
    except (ImportError, AttributeError, OSError):
        return int
