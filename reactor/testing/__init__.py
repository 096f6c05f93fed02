"""reactor.testing: a simulated network, to run real programs in a world that is as bad as you like.

    simulate(scenario) ─► SimulatedNetwork(seed) ─► Reactor(selector, clock, sockets, signals) ─► your protocol
                              │        ▲                                                             │
                       Chance │        └── every system call: the world moves, something goes wrong ◄┘

Read it in this order: `chance` (what goes wrong, and the script that repeats it), `clock`, `wire` (what is under way),
`endpoint`, `link` and `stream` (TCP), `datagram` (UDP), `ports`, `selector`, `signals`, `peers` (the other end),
`network` (all of it together), `simulate` (many seeds, and the smallest failure). `README.md` in this folder is the
guide.
"""

from reactor.testing.chance import CATALOGUE, FAULTS, USUAL_FAULTS, Fault, everything, random_mix
from reactor.testing.clock import SimulatedClock
from reactor.testing.network import SimulatedNetwork, Watcher
from reactor.testing.peers import DatagramPeer, Peer, PeerServer, pieces
from reactor.testing.selector import Quiet, SimulatedSelector
from reactor.testing.signals import SimulatedSignals
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
