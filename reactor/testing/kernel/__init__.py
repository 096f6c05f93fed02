"""The simulated kernel: sockets, ports, selector and signals that behave as on Linux.

    routing ─► ports ─► endpoint ─► link ─► stream     TCP
                            └─────► batch ─► datagram   UDP
                            └─────► selector, signals

Law: these files use the network only through `reactor.testing.world.World`; the selector, which moves the world on,
knows `SimulatedNetwork` itself. `tests/conformance` runs the same tests on these files and on the real kernel.
"""
