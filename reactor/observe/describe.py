"""What a callback, a handler or its peer is called, for people who look inside. A room beside the simple path.

Law: a name is found without asking anybody who might fail. What can't be told (a peer that has gone) is said so.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from reactor.connection import Connection
from reactor.doors import Handler
from reactor.sockets.addresses import format_address
from reactor.timers import Timer


def callback_name(callback: Callable[..., Any]) -> str:
    """Return where a callback is defined, as `echo7.server.EchoServer.stop`; its class where it can't be asked."""
    try:
        return _defined_as(callback)
    except Exception:
        return type(callback).__name__


def _defined_as(callback: Callable[..., Any]) -> str:
    while isinstance(callback, functools.partial):
        callback = callback.func
    name = getattr(callback, "__qualname__", None) or type(callback).__qualname__
    module = getattr(callback, "__module__", None)
    owner = getattr(callback, "__self__", None)
    if owner is not None and not isinstance(owner, type | types.ModuleType) and "<locals>" not in name:
        module, name = type(owner).__module__, f"{type(owner).__qualname__}.{name.rpartition('.')[2]}"
    return f"{module}.{name}" if module else name


def timer_of(callback: Callable[..., Any]) -> Timer | None:
    """Return the timer whose `fire` this is, None for any other callback. Asks no object that might fail."""
    owner = callback.__self__ if type(callback) is types.MethodType else None
    return owner if isinstance(owner, Timer) else None


def handler_name(handler: Handler) -> str:
    """Return a handler's kind, its protocol and its peer or address: `Connection of StreamEcho, 127.0.0.1:5000`."""
    handler = getattr(handler, "observed_handler", handler)  # a trace has put it into the selector
    protocol, where = protocol_name(handler), place(handler)
    return type(handler).__name__ + (protocol and f" of {protocol}") + (where and f", {where}")


def protocol_name(handler: Handler) -> str:
    """Return the class to which a handler's events go; empty if there is none."""
    protocol = getattr(handler, "protocol", None)
    return "" if protocol is None else type(protocol).__name__


def place(handler: Handler) -> str:
    """Return the peer of a connection, the address of others; empty for what has none."""
    address = getattr(handler, "address", None)
    if isinstance(handler, Connection):
        try:
            address = handler.socket.getpeername()
        except OSError:  # ENOTCONN: reset, and nobody has looked yet
            return "gone"
    return format_address(address) if isinstance(address, tuple) else ""
