"""Handler: what the loop asks of everything that has a descriptor.

Law: the descriptor is valid until `closed`, and `closed` never becomes False again.
"""

from typing import Protocol


class Handler(Protocol):
    """What the selector keeps as `data`, and `Reactor.turn` calls."""

    interest: int  # what the selector watches; only `Reactor.set_interest` writes it
    closed: bool  # once True, a stale event of the same batch is skipped

    def fileno(self) -> int:
        """Return the descriptor."""

    def on_event(self, mask: int) -> None:
        """Act on readiness: `mask` is READ, WRITE or both."""

    def abort(self, error: Exception | None = None) -> None:
        """Unregister and close now. The loop calls this if `on_event` raises `error`."""

    def detach(self) -> object:
        """Forget the descriptor without closing it: other code has closed it, and the number may be another's."""
