"""World: what the simulated kernel needs of the network around it.

Law: this file is at the bottom. Sockets, links and peers are written against `World`; `SimulatedNetwork` is one, and
makes them. No file below it imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from reactor.sockets.addresses import Address
from reactor.testing.chance import Chance, Fault
from reactor.testing.clock import SimulatedClock
from reactor.testing.kernel.ports import Descriptors, Ports
from reactor.testing.kernel.routing import Routing
from reactor.testing.wire import Wire

if TYPE_CHECKING:
    from reactor.testing.kernel.endpoint import SimulatedSocket


class World(Protocol):
    """Time, luck, the wire, the tables of a kernel, and where to report what happens."""

    clock: SimulatedClock
    chance: Chance
    wire: Wire
    routing: Routing
    descriptors: Descriptors
    ports: Ports
    violations: list[str]
    latency_s: float
    send_buffer_bytes: int
    receive_buffer_bytes: int
    datagrams_lost: int

    def enter(self, call: str, faulty: bool = True) -> Fault | None:
        """Begin a system call of the program under test. Return what goes wrong with it."""

    def inject(self, fault: Fault) -> Fault:
        """Record that a fault has had its effect, and return it."""

    def changed(self) -> None:
        """Record that something has changed: a loop that turns because of it doesn't spin."""

    def observe(
        self, name: str, sock: SimulatedSocket, data: bytes, peer: Address | None = None, local: str = ""
    ) -> None:
        """Report a call on a stream, or a datagram with its addresses, to those who watch."""

    def about_to_close(self, number: int) -> None:
        """Check that no selector watches a descriptor that is being closed."""
