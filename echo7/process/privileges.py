"""Drop root's privileges permanently, once the port is bound.

Law: a user that doesn't exist is refused before anything is bound. A drop that could be undone is none: afterwards the
process tries to become root again, and if that works, it serves nothing. All other groups are dropped too. No program
that is run from here can gain privileges by a set-user-ID bit (PR_SET_NO_NEW_PRIVS).

The kernel clears the capabilities when no user ID is 0 any more (capabilities(7)).
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from typing import NamedTuple

from echo7.process import StartError

try:
    import grp
    import pwd
except ImportError:  # pragma: no cover - Windows has neither
    grp = pwd = None  # type: ignore[assignment]

# prctl(2), Linux
PR_SET_NO_NEW_PRIVS = 38
SUPERUSER = 0


class Identity(NamedTuple):
    """A user, and the one group that is kept."""

    user_id: int
    group_id: int
    name: str  # as the operator gave it


def identity(text: str) -> Identity:
    """Look up `NAME[:GROUP]`, each a name or a number. Raise ArgumentTypeError."""
    if pwd is None:  # pragma: no cover - Windows
        raise argparse.ArgumentTypeError("this system has no users to switch to; leave it out")
    name, colon, group = text.partition(":")
    user_id, own_group_id = _user(name)
    group_id = _group(group) if colon else own_group_id
    if group_id is None:
        raise argparse.ArgumentTypeError(f"user {name} has no entry, so its group isn't known; give {name}:GROUP")
    if SUPERUSER in (user_id, group_id):
        raise argparse.ArgumentTypeError(f"{text!r} has root's own rights; name a user without them, such as nobody")
    return Identity(user_id, group_id, text)


def become(user: Identity) -> None:
    """Drop root privileges permanently and become `user`. Raise StartError; then serve nothing.

    A process that is that user already, as after a restart, drops nothing but is checked all the same.
    """
    # looked up now, as the user may be barred from where Python is installed
    gain_nothing_new = no_new_privileges()
    if (os.getuid(), os.geteuid(), os.getgid(), os.getegid()) != (user.user_id,) * 2 + (user.group_id,) * 2:
        try:
            os.setgroups([])
            os.setgid(user.group_id)
            # last, as it takes away the right to the others; for root, it changes all three IDs (setuid(2))
            os.setuid(user.user_id)
        except OSError as error:
            raise StartError(
                f"cannot become {user.name}: {error.strerror}; "
                "--user needs root at the start: use sudo, or leave it out"
            ) from None
    _refuse_if_root_can_return(user)
    gain_nothing_new()


def _user(name: str) -> tuple[int, int | None]:
    try:
        found = pwd.getpwnam(name)
    # ValueError: a NUL in it
    except (KeyError, ValueError):
        number = _number(name)
        if number is None:
            raise argparse.ArgumentTypeError(
                f"there is no user {name!r}; check the spelling ('getent passwd' lists them), or make one"
            ) from None
        try:
            found = pwd.getpwuid(number)
        except KeyError:
            return number, None
    return found.pw_uid, found.pw_gid


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        number = _number(name)
        if number is None:
            raise argparse.ArgumentTypeError(
                f"there is no group {name!r}; check the spelling ('getent group' lists them), or make one"
            ) from None
        return number


def _number(text: str) -> int | None:
    """Return a user's or group's number; the highest one means "no change" to setresuid(2)."""
    known = text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**32 - 1
    return int(text) if known else None


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
    """Return a function that sets PR_SET_NO_NEW_PRIVS. Where there is no prctl(2), it does nothing."""
    try:
        import ctypes

        return functools.partial(ctypes.CDLL(None).prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # no ctypes, or a system without prctl: the drop holds without it
    except (ImportError, AttributeError, OSError):
        return int
