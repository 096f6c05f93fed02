"""What a run asks of a flow, and what a flow tells its run.

Law: a flow knows sockets and no statistics; a run knows statistics and no sockets. So each can be tested with a
stand-in for the other, and UDP and TCP are two flows of the same run.
"""

from __future__ import annotations

from typing import Protocol


class Flow(Protocol):
    """One source port."""

    index: int
    source_port: int  # ours; 0 while there is none

    def has_room(self) -> bool:
        """Tell whether another probe may be handed over."""

    def send(self, sequence: int, payload: bytes) -> tuple[int, int]:
        """Send a probe, or have it sent at once when that is possible; return (0 or an errno, when that was)."""

    def path_mtu_bytes(self) -> int | None:
        """Return what the kernel knows of the way's largest packet, headers included; None if it doesn't say."""

    def close(self) -> None:
        """End in order. Nothing is told any more."""


class Run(Protocol):
    """What a flow calls. `index` is the flow's."""

    def payload_of(self, index: int, sequence: int) -> bytes | None:
        """A probe that has waited for a connection goes now. Return its payload, None if its time is over."""

    def arrived(self, index: int, data: bytes, at_ns: int, queued_ns: int) -> None:
        """A datagram has come."""

    def frame(self, index: int, sequence: int, data: bytes, at_ns: int) -> bool:
        """The bytes in this probe's place have come. Return whether they look like an echo."""

    def surplus(self, index: int, data: bytes) -> None:
        """Bytes have come that nothing had asked for."""

    def trouble(self, index: int, code: int, data: bytes, from_whom: str) -> None:
        """The kernel says something of an earlier datagram: of the one that begins with `data`, if it says that."""

    def given_up(self, index: int, sequences: list[int], code: int, reason: str) -> None:
        """These probes are over: the connection couldn't be made (code: its errno), or is lost (0), and why."""
