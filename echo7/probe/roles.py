"""The interfaces between a run and its flows.

Law: a flow knows sockets and no statistics; a run knows statistics and no sockets. So each can be tested with a
stand-in for the other, and UDP and TCP are two kinds of flow in the same run.
"""

from __future__ import annotations

from typing import Protocol


class Flow(Protocol):
    """One source port."""

    index: int
    source_port: int  # ours; 0 while there is none

    def has_room(self) -> bool:
        """Whether another probe may be sent."""

    def send(self, sequence: int, payload: bytes) -> tuple[int, int]:
        """Send a probe, or hold it for a connection. Return (0 or an errno, the time in ns)."""

    def path_mtu_bytes(self) -> int | None:
        """Return the kernel's path MTU, headers included; None if it doesn't know."""

    def close(self) -> None:
        """Close in order, and report nothing more."""


class Run(Protocol):
    """What a flow reports to. `index` is the number of the flow."""

    def payload_of(self, index: int, sequence: int) -> bytes | None:
        """Return the payload of a probe that waited for a connection; None if the probe is settled."""

    def arrived(self, index: int, data: bytes, at_ns: int, queued_ns: int) -> None:
        """Report a datagram. `queued_ns`: how long it waited in the kernel."""

    def frame(self, index: int, sequence: int, data: bytes, at_ns: int) -> bool:
        """Report the bytes in this probe's place in the stream. Return whether they look like an echo."""

    def surplus(self, index: int, data: bytes) -> None:
        """Report bytes that came when no probe was outstanding."""

    def trouble(self, index: int, code: int, data: bytes, reporter: str) -> None:
        """Report an error for an earlier datagram, which starts with `data` if known. `reporter`: its source."""

    def given_up(self, index: int, sequences: list[int], code: int, reason: str) -> None:
        """Report probes without a connection: it couldn't be made (`code` is the errno) or was lost (0)."""
