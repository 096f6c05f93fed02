"""Every bound of the simple path, on one screen.

Law: every step of the loop is bounded, so that each comes round again, and so is every buffer and every wait. Units
are in the names.
"""

from typing import NamedTuple

ACCEPTS_PER_TURN = 64  # per listener
BACKLOG = 1024  # callers waiting in the kernel; it lowers this to its own limit (net.core.somaxconn)
DATAGRAMS_PER_TURN = 64  # per endpoint
DATAGRAM_BYTES = 65_536  # more than any datagram (65,507 over IPv4, 65,527 over IPv6)
UDP_RECEIVE_BYTES = 4 * 1024 * 1024  # asked of the kernel, so that a burst waits; it gives what rmem_max allows
WAKE_BYTES_PER_TURN = 4096
SWEEP_ABOVE_TIMERS = 64  # below so many cancelled timers a sweep costs more than it frees
LONGEST_SLEEP_S = 86_400.0  # poll(2) and epoll_wait(2) count milliseconds in an int: 24 days at the most
SEND_RETRY_S = 0.05  # a stream, after ENOBUFS or ENOMEM
SHORTAGE_RETRY_S = 0.25  # a listener or an endpoint, while the system is out of something
SHORTAGE_QUIET_S = 30.0  # between two log lines about that


class Limits(NamedTuple):
    """What one connection may cost. One object serves all connections of a listener."""

    high_water_bytes: int = 64 * 1024  # more than this pending: stop reading
    receive_bytes: int = 64 * 1024  # the most taken from the kernel per readiness
    linger_timeout_s: float = 5.0  # how long we wait for the peer's FIN after ours

    @property
    def bound_bytes(self) -> int:
        """The most that a connection holds, if its protocol writes no more than it receives."""
        return self.high_water_bytes + self.receive_bytes


DEFAULT_LIMITS = Limits()
