"""reactor.testing: a simulated network in which real programs meet every fault you like.

    simulate(scenario) ─► SimulatedNetwork(seed) ─► Reactor(selector, clock, sockets, signals) ─► your protocol
                              │        ▲                                                             │
                       Chance │        └── every system call: the world moves, something goes wrong ◄┘

Read it in this order: `chance` (what goes wrong, and the script that repeats it), `clock`, `wire` (events to come),
`kernel/` (sockets, ports, selector, signals), `world` (what those need), `peers` (the other end), `turns` (finds a loop
that spins), `network` (all of it together), `simulate` (many seeds, and the smallest failure). `README.md` in this
folder is the guide.
"""

from reactor.testing.chance import CATALOGUE, FAULTS, USUAL_FAULTS, Fault, everything, random_mix
from reactor.testing.clock import SimulatedClock
from reactor.testing.kernel.selector import Quiet, SimulatedSelector
from reactor.testing.kernel.signals import SimulatedSignals
from reactor.testing.network import SimulatedNetwork, Watcher
from reactor.testing.peers import DatagramPeer, Peer, PeerServer, pieces
from reactor.testing.simulate import Report, SimulationFailed, simulate

__all__ = [
    "CATALOGUE",
    "FAULTS",
    "USUAL_FAULTS",
    "DatagramPeer",
    "Fault",
    "Peer",
    "PeerServer",
    "Quiet",
    "Report",
    "SimulatedClock",
    "SimulatedNetwork",
    "SimulatedSelector",
    "SimulatedSignals",
    "SimulationFailed",
    "Watcher",
    "everything",
    "pieces",
    "random_mix",
    "simulate",
]
