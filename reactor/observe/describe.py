"""Names of callbacks, handlers and peers, for people. Law: finding a name never fails."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from reactor.connection import Connection
from reactor.handler import Handler
from reactor.sockets.addresses import format_address
from reactor.timers import Timer


def callback_name(callback: Callable[..., Any]) -> str:
    """Return where a callback is defined, such as `echo7.server.EchoServer.stop`, or at least its class."""
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
    """Return the timer if `callback` is its `fire`, else None. Never calls the object's own code."""
    owner = callback.__self__ if type(callback) is types.MethodType else None
    return owner if isinstance(owner, Timer) else None


def handler_name(handler: Handler) -> str:
    """Return a handler's kind, its protocol and its peer or address: `Connection of StreamEcho, 127.0.0.1:5000`."""
    handler = getattr(handler, "observed_handler", handler)  # a trace wraps it
    protocol, where = protocol_name(handler), place(handler)
    return type(handler).__name__ + (protocol and f" of {protocol}") + (where and f", {where}")


def protocol_name(handler: Handler) -> str:
    """Return the class of a handler's protocol, "" if it has none."""
    protocol = getattr(handler, "protocol", None)
    return "" if protocol is None else type(protocol).__name__


def place(handler: Handler) -> str:
    """Return the peer of a connection, the address of another handler, "" if it has none."""
    address = getattr(handler, "address", None)
    if isinstance(handler, Connection):
        try:
            address = handler.socket.getpeername()
        except OSError:  # ENOTCONN: reset by the peer, not read yet
            return "gone"
    return format_address(address) if isinstance(address, tuple) else ""
