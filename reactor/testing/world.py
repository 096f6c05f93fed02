"""World: what the simulated kernel needs of the network around it.

Law: sockets, links and peers use the network through `World` only. `SimulatedNetwork` implements it and creates them.
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
    """Time, chance, the wire, the tables of a kernel, and the methods that report events."""

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
        """Begin a system call of the program under test. Return its fault or None."""

    def inject(self, fault: Fault) -> Fault:
        """Record that a fault has had its effect, and return it."""

    def changed(self) -> None:
        """Record a change: a loop that turns because of it doesn't spin."""

    def observe(
        self, name: str, sock: SimulatedSocket, data: bytes, peer: Address | None = None, local: str = ""
    ) -> None:
        """Report a call on a stream, or a datagram with its addresses, to the journal and the watchers."""

    def about_to_close(self, number: int) -> None:
        """Check that no selector watches a descriptor that is being closed."""
