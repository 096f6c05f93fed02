"""The TCP cases about large numbers: many clients, connections, answers and resets, and long streams.

Law: each count is bounded by the effort, in number and in time. A slow server is asked less, and isn't called wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from echo7.checker.session import Session
from echo7.checker.tcp_client import HELLO, TcpClient
from echo7.checker.verdict import Failure, Fault, Undecided

BLOCK_BYTES = 1 << 20
PIECES = 3  # of each client, mixed with those of the others
LARGEST_EXCHANGE_BYTES = 3000
CLOSED_AFTER_BYTES = 2000
RETRY_PAUSE_S = 0.2
RESET_MOMENTS = 5
RESET_AFTER_S = 0.005


async def alive(session: Session) -> str:
    """Check that the server still works."""
    end_s = session.reactor.now() + session.stalled_s
    while True:
        client = session.dial()
        await session.until(lambda client=client: client.made or client.over, timeout_s=2 * session.timeout_s)  # type: ignore[misc]
        client.send(HELLO)
        await session.until(lambda client=client: client.over or client.is_answered, timeout_s=session.stalled_s)  # type: ignore[misc]
        if client.made and client.is_answered:
            return "a line came back"
        if session.reactor.now() >= end_s:
            raise Failure(Fault.STOPPED, str(client.failure or f"no answer within {session.stalled_s:g} s"))
        await session.pause(RETRY_PAUSE_S)


async def exchanges(session: Session) -> str:
    """Check many answers over one connection, of all small sizes, each before the next is sent."""
    client, done = await session.connect(), 0
    while not session.enough(done, session.effort.exchanges):
        await client.echo(session.random.randbytes(1 + done % LARGEST_EXCHANGE_BYTES))
        done += 1
    return f"{done:,} answers over one connection were right"


async def stream(session: Session) -> str:
    """Check a long stream of random bytes."""
    client, most_bytes = await session.connect(), session.effort.stream_mib * BLOCK_BYTES
    block = session.random.randbytes(BLOCK_BYTES + 1)
    while not client.over and not session.enough(client.sent_bytes, most_bytes):
        # rotated by one byte each time, so that the stream has no period that is a power of two
        at = client.sent_bytes // BLOCK_BYTES % BLOCK_BYTES
        client.send(block[at:] + block[:at])
        await session.until(
            lambda: client.over or client.sent_bytes - client.received_bytes <= BLOCK_BYTES,
            moving=lambda: client.received_bytes,
            timeout_s=session.stalled_s,
        )
    await client.answered()
    return f"{client.sent_bytes:,} bytes came back"


async def connections(session: Session) -> str:
    """Check many clients one after the other, half of which end with FIN and wait for the server's."""
    done = 0
    while not session.enough(done, session.effort.connections):
        client = await session.connect()
        data = session.random.randbytes(session.random.randint(1, CLOSED_AFTER_BYTES))
        if done % 2:
            client.send(data)
            client.connection.half_close()
            await client.finished()
        else:
            await client.echo(data)
        client.close()
        done += 1
    return f"each of {done:,} clients, one after the other, got its bytes"


async def many(session: Session) -> str:
    """Check that many clients that are connected at once all get their own answers."""
    # TCP retries connections that don't fit into the server's backlog, at ever longer intervals
    patience_s = 3 * session.timeout_s
    clients = [session.dial(timeout_s=2 * patience_s) for _ in range(session.effort.clients)]
    await session.until(
        lambda: all(client.made or client.over for client in clients),
        moving=lambda: sum(client.made for client in clients),
        timeout_s=patience_s,
    )
    for _ in range(PIECES):
        for client in clients:
            client.send(session.random.randbytes(session.random.randint(300, 3000)))
        done = await session.until(
            lambda: all(client.is_answered or client.over for client in clients),
            moving=lambda: sum(client.received_bytes for client in clients),
            timeout_s=patience_s,
        )
        if not done or any(client.over for client in clients):
            await _blame(session, clients, patience_s)
    return f"each of {len(clients)} clients at once got its own bytes"


async def _blame(session: Session, clients: Sequence[TcpClient], waited_s: float) -> None:
    """Raise Failure for what the server did, or Undecided if it may only be slow."""
    for client in clients:
        if client.failure is not None and client.failure.fault in (Fault.EXCESS, Fault.LOSSY):
            raise client.failure
    served = sum(client.made and client.is_answered for client in clients)
    seen = f"{served} of {len(clients)} clients at once got an answer"
    if any(client.over and (client.made or client.is_refused) for client in clients):
        raise Failure(Fault.CONDUCT, f"{seen}; the server refused or closed others")
    waiting = [client for client in clients if not (client.made and client.is_answered)]
    if await session.serves_others(waited_s):
        if all(client.is_taken for client in waiting):
            raise Failure(Fault.CONDUCT, f"{seen}, while others are served at once")
        raise Undecided(f"{seen} in time, the others aren't connected yet: it may only be slow")
    await _prove_loss(waiting)
    for client in clients:
        client.close()
    if served and await session.serves_others(waited_s):
        raise Failure(Fault.CONDUCT, f"{seen}, and others only after those had left")
    raise Undecided(f"{seen} in time: it may only be slow")


async def _prove_loss(waiting: Sequence[TcpClient]) -> None:
    """Raise Failure if a waiting client gets the server's FIN without its bytes."""
    for client in [client for client in waiting if client.made][:1]:
        with contextlib.suppress(Undecided):
            await client.answered()


async def resets(session: Session) -> str:
    """Check that clients that end with RST, at any moment, harm no other client."""
    bystander = await session.connect()
    await bystander.echo(HELLO)
    for number in range(session.effort.resets):
        for moment in range(RESET_MOMENTS):
            await _reset(session, moment, number)
            await bystander.echo(session.random.randbytes(100))
    other = await session.connect()
    await other.echo(HELLO)
    return f"{RESET_MOMENTS * session.effort.resets} clients reset, and others were served"


async def _reset(session: Session, moment: int, number: int) -> None:
    """Connect and reset: at once, after an answer, with an answer unread, while much is under way, or after FIN."""
    client = await session.connect()
    if moment == 1:
        await client.echo(HELLO)
    elif moment == 2:
        client.connection.pause_reading()
        client.send(HELLO * (1 + number))
        await session.pause(RESET_AFTER_S)
    elif moment == 3:
        client.send(session.random.randbytes(BLOCK_BYTES))
        await session.until(lambda: client.over or client.received_bytes)
    elif moment == 4:
        client.send(HELLO)
        client.connection.half_close()
    client.connection.abort()


async def idle(session: Session) -> str:
    """Check that a client that says nothing stays connected until the other cases are over, and gets nothing."""
    client = await session.connect()
    await client.echo(HELLO)
    await session.until_the_end()
    client.check()
    if client.ended or client.over:
        raise Failure(Fault.CONDUCT, "the server closed the connection of an idle client")
    await client.echo(HELLO)
    return "an idle client stayed connected until the end, and was answered"
