"""From root to somebody who may do nothing, for good: what port 7 needed is over once it is bound.

Law: whoever can't be found is refused before anything is bound, and whoever could come back hasn't gone. So after the
drop it is tried to become root again, and if that works, nothing is served. All groups go with the user: an echo
needs none. And no program that is run from here gains any privilege by a set-user-ID bit (PR_SET_NO_NEW_PRIVS).

The capabilities need no call of their own: the kernel clears them when no user ID is 0 any more (capabilities(7)).
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from typing import NamedTuple

try:
    import grp
    import pwd
except ImportError:  # pragma: no cover - Windows has neither
    grp = pwd = None  # type: ignore[assignment]

PR_SET_NO_NEW_PRIVS = 38  # prctl(2), Linux
SUPERUSER = 0


class PrivilegeError(Exception):
    """One line: what couldn't be dropped, why not, and what to do."""


class Identity(NamedTuple):
    """A user and the one group that he keeps."""

    user_id: int
    group_id: int
    name: str  # as the operator gave it


def identity(text: str) -> Identity:
    """Look up `NAME[:GROUP]`, each a name or a number. Raise ArgumentTypeError."""
    if pwd is None:  # pragma: no cover - Windows
        raise argparse.ArgumentTypeError("this system has no users to become; leave it out")
    name, colon, group = text.partition(":")
    user_id, own_group_id = _user(name)
    group_id = _group(group) if colon else own_group_id
    if group_id is None:
        raise argparse.ArgumentTypeError(f"user {name} is in no list, so his group isn't known; give {name}:GROUP")
    if SUPERUSER in (user_id, group_id):
        raise argparse.ArgumentTypeError(f"{text!r} has root's own rights; name somebody without, such as nobody")
    return Identity(user_id, group_id, text)


def become(who: Identity) -> None:
    """Drop all other rights for good. Raise PrivilegeError; then serve nothing.

    Who is that user already, as after a fresh start, drops nothing, and is looked at all the same.
    """
    gain_nothing_new = _gain_nothing_new()  # looked up while we may: he may be barred from where Python lives
    if (os.getuid(), os.geteuid(), os.getgid(), os.getegid()) != (who.user_id,) * 2 + (who.group_id,) * 2:
        try:
            os.setgroups([])
            os.setgid(who.group_id)
            os.setuid(who.user_id)  # last, as it takes the right to all this; of root, it changes all three (setuid(2))
        except OSError as error:
            raise PrivilegeError(
                f"cannot become {who.name}: {error.strerror}; --user needs root at the start: use sudo, or leave it out"
            ) from None
    _refuse_if_it_can_come_back(who)
    gain_nothing_new()


def _user(name: str) -> tuple[int, int | None]:
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: a NUL in it
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


def _refuse_if_it_can_come_back(who: Identity) -> None:
    for call, name in ((os.setuid, "user"), (os.seteuid, "user"), (os.setgid, "group"), (os.setegid, "group")):
        try:
            call(SUPERUSER)
        except OSError:
            continue
        raise PrivilegeError(
            f"as {who.name} we could still become the {name} root again, so nothing is served: something keeps "
            "capabilities over a change of user ('capsh --print' shows the securebits); start without it"
        )


def _gain_nothing_new() -> Callable[[], object]:
    try:
        import ctypes

        return functools.partial(ctypes.CDLL(None).prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    except (ImportError, AttributeError, OSError):  # no ctypes, or a system without prctl: the drop holds without it
        return int
