"""reactor.testing: a simulated network in which real programs meet the faults that you choose.

    simulate(scenario) ─► SimulatedNetwork(seed) ─► Reactor(selector, clock, sockets, signals) ─► your protocol
                              │        ▲                                                             │
                       Chance │        └── at every system call the world moves, and a fault may come ◄┘

Read in this order: `chance` (the faults, and the script that repeats them), `clock`, `wire` (later events), `kernel/`
(sockets, ports, selector, signals), `world` (what the kernel needs), `peers` (the other end), `callbacks` (the
program's own faults), `turns` (finds a spinning loop), `network` (all of it together), `simulate` (many seeds, and the
smallest failure). `README.md` is the guide.
"""

from reactor.testing.callbacks import Callbacks
from reactor.testing.chance import CALLBACK_FAULTS, CATALOGUE, FAULTS, USUAL_FAULTS, Fault, everything, random_mix
from reactor.testing.clock import SimulatedClock
from reactor.testing.kernel.selector import Quiet, SimulatedSelector
from reactor.testing.kernel.signals import SimulatedSignals
from reactor.testing.network import SimulatedNetwork, Watcher
from reactor.testing.peers import DatagramPeer, Peer, PeerServer, pieces
from reactor.testing.simulate import Report, SimulationFailed, simulate

__all__ = [
    "CALLBACK_FAULTS",
    "CATALOGUE",
    "FAULTS",
    "USUAL_FAULTS",
    "Callbacks",
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
