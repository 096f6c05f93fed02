"""Settings: what `echo7 serve` was asked for, as data. It imports nothing that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from echo7.policy.sources import SourceLimits

if TYPE_CHECKING:
    from echo7.process.privileges import Identity


class Settings(NamedTuple):
    """What `echo7 serve` was asked for."""

    hosts: tuple[str, ...]
    port: int
    tcp: bool
    udp: bool
    udp_batch: bool
    splice: bool
    max_connections: int | None
    backlog: int
    socket_buffer_bytes: int | None
    drain_timeout_s: float
    idle_timeout_s: float | None
    sources: SourceLimits
    busy_poll_s: float
    selector: str
    log_level: str
    log_format: str
    workers: int
    user: Identity | None
    slow_callback_s: float | None
    metrics: tuple[str, int] | None
    trace: str | None
    narrate: bool

    def fixed(self) -> dict[str, str]:
        """Return what a fresh start on SIGHUP can't change, by option, in the form in which it is compared."""
        who = "" if self.user is None else f"{self.user.user_id}:{self.user.group_id}"
        flags = {"--no-tcp": not self.tcp, "--no-udp": not self.udp}
        numbers = {"--port": self.port, "--workers": self.workers, **flags}
        return {"--host": " ".join(self.hosts), "--user": who} | {name: str(value) for name, value in numbers.items()}
