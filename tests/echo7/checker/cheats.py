"""Servers that cheat in one way each, for the simulation and for real sockets. Not a test.

    python3 -m tests.echo7.checker.cheats NAME HOST PORT      serve on real sockets

Law: each cheat is correct in everything but one thing. The table names the cases of which at least one must fail.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import NamedTuple

from reactor import Address, Connection, Datagram, DatagramProtocol, Reactor, StreamProtocol, listen_tcp, open_udp

LATE_S = 1.2


class World:
    """The loop and endpoints of one server. `die` closes everything, as the end of a process does."""

    def __init__(self, loop: Reactor, host: str, port: int) -> None:
        self.loop, self.address = loop, (host, port)
        self.connections: list[Connection] = []
        self.stream, self.datagrams = Stream(), Datagrams()

    def serve(self, cheat: Cheat) -> None:
        """Listen over TCP and UDP."""
        cheat.change(self)
        self.stream.world = self.datagrams.world = self
        self.aside = open_udp(self.loop, (self.address[0], 0), DatagramProtocol())
        self.endpoint = open_udp(self.loop, self.address, self.datagrams)
        self.listener = listen_tcp(self.loop, self.address, lambda: self.stream)

    def die(self) -> None:
        """Close all sockets."""
        for closed in (self.listener, self.endpoint, self.aside):
            closed.close()
        for connection in list(self.connections):
            connection.abort()


class Stream(StreamProtocol):
    """A correct echo for all connections. A cheat replaces one of its functions."""

    world: World

    def __init__(self) -> None:
        self.made = self.calls = 0
        self.received: dict[Connection, int] = {}
        self.opened: Callable[[Connection], object] = lambda connection: None
        self.answer: Callable[[Connection, bytes], object] = lambda connection, data: connection.write(data)
        self.eof: Callable[[Connection], object] = lambda connection: None
        self.lost: Callable[[Connection, Exception | None], object] = lambda connection, error: None

    def connection_made(self, connection: Connection) -> None:
        self.made += 1
        self.received[connection] = 0
        self.world.connections.append(connection)
        self.opened(connection)

    def data_received(self, connection: Connection, data: bytes) -> None:
        self.calls += 1
        self.received[connection] += len(data)
        self.answer(connection, data)

    def eof_received(self, connection: Connection) -> bool:
        return self.eof(connection) is True

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.world.connections.remove(connection)
        self.received.pop(connection)
        self.lost(connection, error)


class Datagrams(DatagramProtocol):
    """A correct echo. A cheat replaces `answer`."""

    world: World

    def __init__(self) -> None:
        self.calls = 0
        self.answer: Callable[[bytes, Address], object] = lambda data, source: self.send(data, source)

    def send(self, data: bytes, source: Address) -> None:
        self.world.endpoint.send(data, source)

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        if source[1] != 19:
            self.calls += 1
            self.answer(data, source)


class Cheat(NamedTuple):
    """One way to cheat: `change` changes a correct server. At least one of `cases` must fail."""

    name: str
    cases: str
    change: Callable[[World], object]


CHEATS: list[Cheat] = []


def cheat(cases: str) -> Callable[[Callable[[World], object]], Callable[[World], object]]:
    def add(change: Callable[[World], object]) -> Callable[[World], object]:
        CHEATS.append(Cheat(change.__name__, cases, change))
        return change

    return add


# ---------------------------------------------------------------- TCP: bytes


def changed(name: str, cases: str, change: Callable[[bytes], bytes]) -> None:
    """Add a cheat that changes bytes over TCP."""

    def replace(world: World) -> None:
        world.stream.answer = lambda connection, data: connection.write(change(data))

    CHEATS.append(Cheat(name, cases, replace))


changed("tcp_uppercases", "tcp-random", bytes.upper)
changed("tcp_strips_nul", "tcp-all-bytes", lambda data: data.replace(b"\0", b""))
changed("tcp_clears_the_high_bit", "tcp-all-bytes", lambda data: data.translate(bytes(i & 127 for i in range(256))))
changed("tcp_changes_one_value", "tcp-all-bytes", lambda data: data.replace(b"\xa7", b"\xa6"))
changed("tcp_swaps_halves_of_large_reads", "tcp-64k tcp-16m", lambda d: d if len(d) < 9000 else d[5000:] + d[:5000])


@cheat("tcp-16m tcp-stream")
def tcp_changes_ff_after_300_kb(world: World) -> None:
    stream = world.stream

    def answer(connection: Connection, data: bytes) -> None:
        connection.write(data if stream.received[connection] < 300_000 else data.replace(b"\xff", b"\xfe"))

    stream.answer = answer


@cheat("tcp-16m tcp-stream")
def tcp_limits_a_stream_to_1_mib(world: World) -> None:
    def answer(connection: Connection, data: bytes) -> None:
        connection.write(data[: max((1 << 20) - connection.bytes_sent - connection.pending_bytes, 0)])

    world.stream.answer = answer


@cheat("tcp-16m tcp-stream")
def tcp_closes_after_1_mib(world: World) -> None:
    def answer(connection: Connection, data: bytes) -> None:
        connection.write(data)
        if world.stream.received[connection] > 1 << 20:
            connection.close()

    world.stream.answer = answer


@cheat("tcp-count tcp-chunks")
def tcp_drops_every_200th_answer(world: World) -> None:
    def answer(connection: Connection, data: bytes) -> None:
        if world.stream.calls % 200:
            connection.write(data)

    world.stream.answer = answer


@cheat("tcp-16m tcp-chunks tcp-stream")
def tcp_reorders_now_and_then(world: World) -> None:
    held: dict[Connection, bytes] = {}

    def answer(connection: Connection, data: bytes) -> None:
        before = held.pop(connection, b"")
        if not before and len(data) > 1000 and world.stream.calls % 20 == 0:
            half = len(data) // 2
            held[connection], data = data[:half], data[half:]
            world.loop.call_soon(flush, connection)
        connection.write(data + before)

    def flush(connection: Connection) -> None:
        if connection in held and not connection.closed:
            connection.write(held.pop(connection))

    world.stream.answer = answer


@cheat("tcp-many tcp-stuck-peer tcp-reset")
def tcp_mixes_two_connections(world: World) -> None:
    def answer(connection: Connection, data: bytes) -> None:
        others = [other for other in world.connections if other is not connection]
        wrong = others[-1] if others and world.stream.calls % 40 == 0 else connection
        wrong.write(data)

    world.stream.answer = answer


@cheat("tcp-caller-ends tcp-count")
def tcp_answers_only_the_first_payload(world: World) -> None:
    def answer(connection: Connection, data: bytes) -> None:
        if world.stream.received[connection] == len(data):
            connection.write(data)

    world.stream.answer = answer


@cheat("tcp-count tcp-random tcp-16m")
def tcp_cuts_reads_to_4_kib(world: World) -> None:
    world.stream.answer = lambda connection, data: connection.write(data[:4096])


@cheat("tcp-half-close")
def tcp_loses_at_fin_what_waits(world: World) -> None:
    held: dict[Connection, bytes] = {}

    def answer(connection: Connection, data: bytes) -> None:
        if connection not in held:
            world.loop.call_later(0.002, flush, connection)
        held[connection] = held.get(connection, b"") + data

    def flush(connection: Connection) -> None:
        data = held.pop(connection, b"")
        if not connection.closed:
            connection.write(data)

    world.stream.answer = answer
    world.stream.eof = lambda connection: held.pop(connection, b"")


@cheat("tcp-count")
def tcp_stops_after_200_answers(world: World) -> None:
    counts: dict[int, int] = {}

    def answer(connection: Connection, data: bytes) -> None:
        counts[id(connection)] = counts.get(id(connection), 0) + 1
        if counts[id(connection)] <= 200:
            connection.write(data)

    world.stream.opened = lambda connection: counts.pop(id(connection), None)
    world.stream.answer = answer


# ---------------------------------------------------------------- TCP: more than was sent


@cheat("tcp-idle tcp-silence tcp-no-more tcp-caller-ends")
def tcp_answers_once_more_later(world: World) -> None:
    def answer(connection: Connection, data: bytes) -> None:
        connection.write(data)
        world.loop.call_later(LATE_S, again, connection, data)

    def again(connection: Connection, data: bytes) -> None:
        if not connection.closed:
            connection.write(data)

    world.stream.answer = answer


@cheat("tcp-idle")
def tcp_storms_when_idle(world: World) -> None:
    def storm(connection: Connection) -> None:
        if not connection.closed:
            connection.write(b"storm" * 10_000)

    world.stream.opened = lambda connection: world.loop.call_later(LATE_S, storm, connection)


@cheat("tcp-idle")
def tcp_closes_idle_connections(world: World) -> None:
    world.stream.opened = lambda connection: world.loop.call_later(LATE_S, connection.close)


# ---------------------------------------------------------------- TCP: many


@cheat("tcp-again tcp-many tcp-alive")
def tcp_stops_after_64_connections(world: World) -> None:
    def answer(connection: Connection, data: bytes) -> None:
        if world.stream.made <= 64:
            connection.write(data)

    world.stream.answer = answer


@cheat("tcp-many")
def tcp_serves_64_at_once(world: World) -> None:
    waiting: list[Connection] = []

    def opened(connection: Connection) -> None:
        if len(world.connections) - len(waiting) > 64:
            connection.pause_reading()
            waiting.append(connection)

    def lost(connection: Connection, error: Exception | None) -> None:
        if connection in waiting:
            waiting.remove(connection)
        elif waiting:
            waiting.pop(0).resume_reading()

    world.stream.opened, world.stream.lost = opened, lost


@cheat("tcp-many")
def tcp_closes_the_65th_at_once(world: World) -> None:
    def opened(connection: Connection) -> None:
        if len(world.connections) > 64:
            connection.close()

    world.stream.opened = opened


@cheat("tcp-silence tcp-alive")
def tcp_dies_after_the_second_call(world: World) -> None:
    world.stream.lost = lambda connection, error: world.die() if world.stream.made >= 2 else None


@cheat("tcp-again tcp-alive")
def tcp_dies_after_70_connections(world: World) -> None:
    world.stream.lost = lambda connection, error: world.die() if world.stream.made >= 70 else None


@cheat("tcp-reset tcp-alive")
def tcp_dies_at_a_reset(world: World) -> None:
    world.stream.lost = lambda connection, error: world.die() if isinstance(error, ConnectionError) else None


@cheat("tcp-reset")
def tcp_drops_all_others_at_a_reset(world: World) -> None:
    def lost(connection: Connection, error: Exception | None) -> None:
        if isinstance(error, ConnectionError):
            for other in list(world.connections):
                other.close()

    world.stream.lost = lost


@cheat("tcp-count udp-alive tcp-alive")
def hangs_after_300_answers(world: World) -> None:
    def answer(connection: Connection, data: bytes) -> None:
        if world.stream.calls <= 300:
            connection.write(data)

    world.stream.answer = answer


# ---------------------------------------------------------------- UDP


def each(name: str, cases: str, change: Callable[[int, bytes], list[bytes]]) -> None:
    """Add a cheat that answers the nth datagram with these."""

    def replace(world: World) -> None:
        def answer(data: bytes, source: Address) -> None:
            for out in change(world.datagrams.calls, data):
                world.datagrams.send(out, source)

        world.datagrams.answer = answer

    CHEATS.append(Cheat(name, cases, replace))


each("udp_drops_two_of_three", "udp-answers udp-1 udp-512 udp-one-answer", lambda n, data: [data] if n % 3 == 1 else [])
each("udp_drops_1_in_100", "udp-count", lambda n, data: [data] if n % 100 else [])
each("udp_drops_1_in_500", "udp-count", lambda n, data: [data] if n % 500 else [])
each("udp_doubles_1_in_20", "udp-one-answer udp-count", lambda n, data: [data] if n % 20 else [data, data])
each("udp_doubles_1_in_500", "udp-count", lambda n, data: [data] if n % 500 else [data, data])
each("udp_cuts_at_1472", "udp-1473", lambda n, data: [data[:1472]])
each("udp_cuts_at_8192", "udp-8193", lambda n, data: [data[:8192]])
each("udp_drops_empty_ones", "udp-0", lambda n, data: [data] if data else [])
each("udp_doubles_empty_ones", "udp-0", lambda n, data: [data] if data else [data, data])
each("udp_drops_one_size", "udp-count", lambda n, data: [data] if len(data) != 1000 else [])
each("udp_uppercases", "udp-count udp-all-bytes", lambda n, data: [data.upper()])
each("udp_strips_nul", "udp-count udp-all-bytes", lambda n, data: [data.replace(b"\0", b"")])
each("udp_changes_the_last_byte_of_large_ones", "udp-count", lambda n, d: [d if len(d) < 1000 else d[:-1] + b"!"])
each("udp_stops_after_200", "udp-count udp-alive", lambda n, data: [data] if n <= 200 else [])
each("udp_adds_a_byte_to_some", "udp-count", lambda n, data: [data if n % 50 else data + b"!"])


@cheat("udp-1 udp-512")
def udp_answers_from_another_port(world: World) -> None:
    world.datagrams.answer = lambda data, source: world.aside.send(data, source)


@cheat("udp-count")
def udp_answers_some_from_another_port(world: World) -> None:
    world.datagrams.answer = lambda data, source: (world.endpoint if world.datagrams.calls % 50 else world.aside).send(
        data, source
    )


@cheat("udp-0")
def udp_answers_an_empty_one_without_end(world: World) -> None:
    def answer(data: bytes, source: Address) -> None:
        world.datagrams.send(data, source)
        if not data:
            world.loop.call_later(0.001, answer, data, source)

    world.datagrams.answer = answer


@cheat("udp-512")
def udp_storms_late(world: World) -> None:
    def storm(data: bytes, source: Address) -> None:
        for _ in range(100):
            world.datagrams.send(data, source)

    def answer(data: bytes, source: Address) -> None:
        world.datagrams.send(data, source)
        if len(data) == 512:
            world.loop.call_later(LATE_S, storm, data, source)

    world.datagrams.answer = answer


@cheat("udp-1472")
def udp_answers_once_more_later(world: World) -> None:
    def answer(data: bytes, source: Address) -> None:
        world.datagrams.send(data, source)
        if len(data) == 1472:
            world.loop.call_later(LATE_S, world.datagrams.send, data, source)

    world.datagrams.answer = answer


@cheat("udp-1 udp-512")
def udp_answers_with_the_one_before(world: World) -> None:
    held = [b""]

    def answer(data: bytes, source: Address) -> None:
        world.datagrams.send(held.pop(), source)
        held.append(data)

    world.datagrams.answer = answer


@cheat("udp-one-answer udp-count")
def udp_merges_datagrams(world: World) -> None:
    held: list[bytes] = []

    def answer(data: bytes, source: Address) -> None:
        held.append(data)
        if len(held) == 1:
            world.loop.call_soon(flush, source)

    def flush(source: Address) -> None:
        world.datagrams.send(b"".join(held), source)
        held.clear()

    world.datagrams.answer = answer


@cheat("udp-clients")
def udp_answers_the_client_before(world: World) -> None:
    held: list[Address] = []

    def answer(data: bytes, source: Address) -> None:
        held.append(source)
        wrong = held.pop(0) if len(held) > 1 and world.datagrams.calls % 5 == 0 else source
        del held[:-1]
        world.datagrams.send(data, wrong)

    world.datagrams.answer = answer


@cheat("udp-one-answer udp-clients udp-count")
def udp_answers_only_the_first_of_a_client(world: World) -> None:
    seen: set[int] = set()

    def answer(data: bytes, source: Address) -> None:
        if source[1] not in seen:
            seen.add(source[1])
            world.datagrams.send(data, source)

    world.datagrams.answer = answer


BY_NAME = {each.name: each for each in CHEATS}
HONEST = Cheat("honest", "", lambda world: None)


def main(name: str, host: str, port: str) -> None:
    """Serve until the process ends."""
    with Reactor() as loop:
        World(loop, host, int(port)).serve(BY_NAME.get(name, HONEST))
        print("ready", flush=True)
        for _ in itertools.repeat(None):
            loop.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
