"""The simulated kernel: sockets, ports, selector and signals, as Linux has them.

    routing ─► ports ─► endpoint ─► link ─► stream     TCP
                            └─────► batch ─► datagram   UDP
                            └─────► selector, signals

Law: no file here imports `SimulatedNetwork`. They are written against `reactor.testing.world.World`, which names all
that they need of it. `tests/conformance` puts the same questions to these files and to the real kernel.
"""
