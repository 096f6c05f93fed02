"""Every bound of the simple path, on one screen.

Law: every step of the loop is bounded, and so is every buffer and every wait. Names carry units.
"""

from typing import NamedTuple

ACCEPTS_PER_TURN = 64  # per listener
BACKLOG = 1024  # clients in the kernel's queue; net.core.somaxconn may lower it
DATAGRAMS_PER_TURN = 64  # per endpoint
DATAGRAM_BYTES = 65_536  # more than the largest (65,507 over IPv4, 65,527 over IPv6)
UDP_BUFFER_BYTES = 4 * 1024 * 1024  # for bursts; net.core.rmem_max and wmem_max may lower it
WAKE_BYTES_PER_TURN = 4096
FAILURES_IN_A_ROW = 64  # failed accepts or receives, whatever the errno, before the socket is suspended
TIMERS_PER_TURN = 1000
SWEEP_ABOVE_TIMERS = 64  # with fewer cancelled timers, a sweep costs more than it frees
MOVES_PER_CANCEL = 4  # timers that each `cancel` moves from a half cancelled heap to a new one
LONGEST_SLEEP_S = 86_400.0  # epoll_wait(2) takes milliseconds as an int: at most 24 days
SEND_HOLD_S = 0.05  # how long a datagram waits for room in the kernel's send buffer
CONGESTED_S = 1.0  # after that, a datagram for which there is no room is dropped at once
SEND_RETRY_S = 0.05  # how long a stream waits after ENOBUFS or ENOMEM
SHORTAGE_RETRY_S = 0.25  # how long a listener or endpoint waits while descriptors or memory are short
SHORTAGE_QUIET_S = 30.0  # between two log lines about a shortage


class Limits(NamedTuple):
    """The bounds of one connection. All connections of a listener share one object."""

    high_water_bytes: int = 64 * 1024  # with more pending bytes, stop reading
    receive_bytes: int = 64 * 1024  # at most, per readiness
    linger_timeout_s: float = 5.0  # from our FIN to the peer's
    pipe_bytes: int = 1024 * 1024  # in the pipe of a bulk connection, if that is more than `bound_bytes`

    @property
    def bound_bytes(self) -> int:
        """The most bytes a connection holds in this process, if its protocol writes no more than it receives."""
        return self.high_water_bytes + self.receive_bytes


DEFAULT_LIMITS = Limits()
