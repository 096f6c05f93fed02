"""The guide is true: its turn is `Reactor.turn`, its names exist, its programs do what it says."""

from __future__ import annotations

import ast
import contextlib
import errno
import inspect
import itertools
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reactor import Connection, DatagramProtocol, Listener, Reactor, State, StreamProtocol, listen_tcp, loop, open_udp
from tests.support.basics import PATIENCE_S, PROJECT, open_descriptors, quiet_port, silent_address
from tests.support.clients import connect_small, drain, echo_and_close, receive_exactly, receive_to_end, reset
from tests.support.echo import EchoThread
from tests.support.faults import Faults, FlakySockets
from tests.support.loops import (
    LoopThread,
    ManualClock,
    Recorder,
    RecordingSelector,
    Stage,
    connections_of,
    turn_idle,
    turn_until,
    wait_readable,
)
from tests.test_tidy import SIMPLE_PATH

FOLDER = PROJECT / "reactor"
GUIDE = (FOLDER / "README.md").read_text()
LESSONS = 13
MARK = re.compile(r"`([^`]+)`")


def section(title: str) -> str:
    """Return the text under a heading of level 2."""
    [text] = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S)
    return str(text)


def rows(text: str) -> list[list[str]]:
    """Return the cells of a table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# ---------------------------------------------------------------- the turn


def steps() -> list[tuple[str, str, str]]:
    """Return each step's name, its sentence, and its lines of code."""
    found = re.findall(r"^\d\. \*\*(\w+)\*\*: (.*?)\n\n   ```python\n(.*?)   ```\n", section("One turn"), re.M | re.S)
    return [(name, sentence, re.sub(r"^ {3}", "", code, flags=re.M)) for name, sentence, code in found]


def test_the_guides_steps_equal_the_loops_docstring() -> None:
    told = re.findall(r"^ {4}(\d)\. (\w+) +(.*)$", loop.__doc__ or "", re.M)
    assert [(str(n), name, sentence) for n, (name, sentence, _) in enumerate(steps(), 1)] == told
    assert len(told) == 5


def test_the_guides_code_is_the_whole_body_of_turn() -> None:
    [function] = ast.parse(textwrap.dedent(inspect.getsource(Reactor._turn))).body
    assert isinstance(function, ast.FunctionDef)
    after_docstring = function.body[1].lineno - 1
    body = textwrap.dedent("".join(inspect.getsource(Reactor._turn).splitlines(keepends=True)[after_docstring:]))
    assert "".join(code for _, _, code in steps()) == body


# ---------------------------------------------------------------- names


def names_in(path: pathlib.Path) -> set[str]:
    """Return what a file defines: functions, constants, classes and `Class.member`, with slots."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        found |= defined(node)
        if isinstance(node, ast.ClassDef):
            members = {name for each in node.body for name in defined(each)}
            found |= {f"{node.name}.{name}" for name in members}
    return found


def defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    if isinstance(node, ast.Assign):
        names = {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        return names | (set(ast.literal_eval(node.value)) if names == {"__slots__"} else set())
    return set()


def index() -> dict[str, list[tuple[str, list[str]]]]:
    """Return each word with its files and the names in them."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for concept, _, where, _ in rows(section("Words")):
        places = found[concept] = []
        for name in MARK.findall(where):
            if name.endswith(".py"):
                places.append((name, []))
            else:
                places[-1][1].append(name)
        assert not MARK.sub("", where).strip(), f"{concept}: what isn't a name isn't looked up"
    return found


@pytest.mark.parametrize("concept", index())
def test_every_word_names_an_existing_file_and_name(concept: str) -> None:
    places = index()[concept]
    assert places
    for file, names in places:
        assert names
        assert set(names) <= names_in(FOLDER / file)


def test_the_words_are_sorted_and_complete() -> None:
    concepts = list(index())
    assert concepts == sorted(concepts, key=str.casefold)
    words = "readiness interest level-triggered partial write buffer backpressure high-water mark half-close lingering"
    words += " RST EMFILE timer heap cancel starvation fairness wake-up signals thread-safe call stale event clock"
    words += " door simulation truncated datagram EAGAIN state machine teardown dispatch fork"
    words += " handler turn edge-triggered drain generation observer sink snapshot suspend register"
    assert not [word for word in words.split() if word not in " ".join(concepts)]


def test_the_words_lessons_exist() -> None:
    lessons = {cells[3] for cells in rows(section("Words"))}
    assert lessons <= {"", *map(str, range(1, LESSONS + 1))}


def test_the_reading_order_is_that_of_the_simple_path() -> None:
    read = [cells[1].strip("`").removesuffix(".py") for cells in rows(section("Reading order"))]
    assert sorted(read) == sorted(SIMPLE_PATH)
    assert [cells[0] for cells in rows(section("Reading order"))] == [str(n) for n in range(1, len(read) + 1)]


def test_every_file_that_the_guide_names_exists() -> None:
    names = {name for name in MARK.findall(GUIDE) if re.fullmatch(r"[\w/]+\.py", name)}
    elsewhere = {"selector_events.py", "base_events.py"}  # asyncio's
    assert not [name for name in names - elsewhere if not ((FOLDER / name).is_file() or (PROJECT / name).is_file())]


def test_every_module_of_the_package_is_in_the_guide() -> None:
    """A new module must be described in the guide."""
    assert not [path.name for path in FOLDER.glob("[a-z]*.py") if f"`{path.name}`" not in GUIDE]


def test_links_within_the_guide_lead_to_its_headings() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", GUIDE, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", GUIDE)) <= headings


# ---------------------------------------------------------------- the path of one byte


def walk() -> list[list[str]]:
    """Return the functions named in each step of the path, in order, without `Limits`, which isn't called."""
    items = re.findall(r"^\d\. (.*?)(?=^\d\. |^$)", section("The path of one byte"), re.M | re.S)
    named = [re.findall(r"`([A-Z]\w+\.\w+)`", item) for item in items]
    return [[name for name in names if not name.startswith("Limits.")] for names in named]


def test_every_name_on_the_path_of_a_byte_exists() -> None:
    known = {name for file in [*SIMPLE_PATH, "sockets/watchlist"] for name in names_in(FOLDER / f"{file}.py")}
    named = re.findall(r"`([A-Z]\w+\.\w+)`", section("The path of one byte"))
    assert len(named) >= 15
    assert not set(named) - known


def calls_during(action: Callable[[], object], names: set[str]) -> list[str]:
    """Return the calls of the named functions, in order. A protocol's method counts as StreamProtocol's."""
    called: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_qualname.replace("Recorder.", "StreamProtocol.")
        if event == "call" and name in names:
            called.append(name)

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return called


def test_a_byte_takes_the_path_in_the_guide() -> None:
    """Of ten bytes the kernel takes three at once, three more when there is room, then the rest."""
    path = walk()
    arrival, flush, left = [name for step in path[:6] for name in step], path[6] + path[7], path[8]
    names = {name for step in path for name in step}
    assert left[0] == "Connection._advance"
    with Stage(Recorder(echo=True)) as stage:
        stage.faults.add("send", 3, 3)
        stage.peer.send(b"0123456789")
        wait_readable(stage.connection)
        assert calls_during(stage.reactor.turn, names) == arrival
        assert stage.connection.pending_bytes == 7
        assert calls_during(stage.reactor.turn, names)[: len(flush) + 1] == [*flush, left[0]]
        assert stage.connection.pending_bytes == 4
        calls = calls_during(stage.reactor.turn, names)
        assert calls[: len(flush) + len(left) - 1] == flush + left[1:]
        assert calls[-1] == "StreamProtocol.drained"
        assert (stage.connection.pending_bytes, stage.connection.interest) == (0, loop.READ)
        stage.peer.settimeout(PATIENCE_S)
        assert receive_exactly(stage.peer, 10) == b"0123456789"


# ---------------------------------------------------------------- the programs

PROGRAMS = dict(
    zip(
        ("discard", "chargen", "chat", "ask"),
        re.findall(r"^```python\n(.*?)^```", section("Writing a protocol"), re.M | re.S),
        strict=True,
    )
)
SERVERS = ("discard", "chargen", "chat")
LINE = 72 + 2  # a line of chargen, with CR LF


def load(name: str) -> dict[str, Any]:
    """Return the names that a program defines, without running its main part."""
    names: dict[str, Any] = {"__name__": name}
    exec(compile(PROGRAMS[name], f"README.md: {name}", "exec"), names)
    return names


def generated(count: int) -> bytes:
    """Return the first `count` bytes of RFC 864's pattern: line N has characters N … N + 71, mod 95."""
    lines = ("".join(chr(32 + (n + i) % 95) for i in range(72)) + "\r\n" for n in itertools.count())
    return "".join(itertools.islice(lines, count // LINE + 1)).encode()[:count]


class Served:
    """A protocol of the guide, shared by all connections, on a loop with scripted faults."""

    def __init__(self, make: Callable[[Reactor], StreamProtocol]) -> None:
        self.faults = Faults()
        self.reactor = Reactor(sockets=FlakySockets(self.faults))
        protocol = make(self.reactor)
        self.listener: Listener = listen_tcp(self.reactor, ("127.0.0.1", 0), lambda: protocol)
        self._clients: list[socket.socket] = []

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *exception: object) -> None:
        for client in self._clients:
            client.close()
        self.reactor.close()

    def connect(self, buffer_bytes: int | None = None) -> tuple[socket.socket, Connection]:
        """Return a non-blocking client, and the connection that serves it."""
        before = connections_of(self.reactor)
        client = connect_small((self.listener.address[0], self.listener.address[1]), buffer_bytes)
        self._clients.append(client)
        client.setblocking(False)
        turn_until(self.reactor, lambda: len(connections_of(self.reactor)) > len(before))
        return client, connections_of(self.reactor)[-1]

    def read(self, client: socket.socket, count: int) -> bytes:
        """Turn until the client has received `count` bytes."""
        received = bytearray()

        def read() -> bool:
            received.extend(drain(client))
            return len(received) >= count

        turn_until(self.reactor, read)
        return bytes(received)


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_has_ten_to_thirty_lines(name: str) -> None:
    assert 10 <= len([line for line in PROGRAMS[name].splitlines() if line.strip()]) <= 30


@contextlib.contextmanager
def by_hand(name: str, folder: pathlib.Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the program as a reader does: saved to a file, with its arguments."""
    file = folder / f"{name}.py"
    file.write_text(PROGRAMS[name])
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(
        [sys.executable, str(file), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    overdue = threading.Timer(PATIENCE_S, process.kill)
    overdue.start()
    with process:
        try:
            yield process
        finally:
            process.kill()
            overdue.cancel()


def talk(name: str, address: tuple[str, int]) -> None:
    """Talk to a server as a reader would first."""
    with socket.create_connection(address, PATIENCE_S) as client, socket.create_connection(address) as other:
        client.sendall(b"hello\n")
        if name == "discard":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.connect(address)
                asking.setblocking(False)
                asking.send(b"hello?")
                assert echo_and_close(client, b"more") == b""
                with pytest.raises(BlockingIOError):  # no ICMP error and no answer: a server discards
                    asking.recv(16)
        elif name == "chargen":
            assert receive_exactly(client, 100 * LINE) == generated(100 * LINE)
        else:
            other.settimeout(PATIENCE_S)
            other.sendall(b"hi\n")
            assert (receive_exactly(client, 3), receive_exactly(other, 6)) == (b"hi\n", b"hello\n")


@pytest.mark.parametrize("name", SERVERS)
def test_each_server_runs_unchanged_and_ends_with_ctrl_c(name: str, tmp_path: pathlib.Path) -> None:
    port = str(quiet_port()) if name == "discard" else "0"  # the kernel's choice may be in use on UDP
    with by_hand(name, tmp_path, port) as process:
        assert process.stdout is not None
        host, _, number = process.stdout.readline().rpartition(" ")[2].rpartition(":")
        talk(name, (host, int(number)))
        process.send_signal(signal.SIGINT)
        said, wrong = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, wrong) == (0, "")
    if name == "discard":
        assert "10 bytes, in order\n" in said


def test_the_client_runs_unchanged(tmp_path: pathlib.Path) -> None:
    with EchoThread() as echo, by_hand("ask", tmp_path, str(echo.port), "hello") as process:
        assert process.communicate(timeout=PATIENCE_S) == ("hello\n", "")
    assert process.returncode == 0


def test_client_without_an_answer_prints_the_reason_and_fails(tmp_path: pathlib.Path) -> None:
    with by_hand("ask", tmp_path, str(quiet_port()), "hello") as process:
        said, wrong = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (1, "")
    assert wrong.startswith("no answer: ")
    assert wrong.count("\n") == 1


# ---------------------------------------------------------------- discard


def test_discard_reads_everything_sends_nothing_and_closes_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytes(1 << 21)
    with LoopThread() as thread:
        listener = thread.call(listen_tcp, thread.reactor, ("127.0.0.1", 0), load("discard")["Discard"])
        assert echo_and_close(socket.create_connection(listener.address, PATIENCE_S), data) == b""  # FIN, not RST
        thread.wait_for(lambda: not connections_of(thread.reactor))
    assert capfd.readouterr().out == f"{len(data)} bytes, in order\n"


def test_discard_reports_a_reset_by_the_client(capfd: pytest.CaptureFixture[str]) -> None:
    discard: StreamProtocol = load("discard")["Discard"]()
    with Served(lambda _: discard) as served:
        client, connection = served.connect()
        client.send(b"12345")
        turn_until(served.reactor, lambda: connection.bytes_received)
        reset(client)
        turn_until(served.reactor, lambda: connection.closed)
        turn_idle(served.reactor)
    assert capfd.readouterr().out.startswith(f"5 bytes, [Errno {errno.ECONNRESET}]")


def test_default_datagram_protocol_discards() -> None:
    """The program has: "UDP on the same port discards, too"."""
    with Reactor() as reactor, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        endpoint = open_udp(reactor, ("127.0.0.1", 0), DatagramProtocol())
        client.connect(endpoint.address)
        client.setblocking(False)
        client.send(b"hello?")
        turn_until(reactor, lambda: endpoint.datagrams_received)
        turn_idle(reactor)
        with pytest.raises(BlockingIOError):
            client.recv(16)
        assert (endpoint.datagrams_sent, endpoint.drops) == (0, {})


# ---------------------------------------------------------------- chargen


def serve_chargen() -> Served:
    make: Callable[[Reactor], StreamProtocol] = load("chargen")["Chargen"]
    return Served(make)


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=20))
@example([1])
@example([7029, 1])
def test_chargen_continues_correctly_after_any_partial_writes(takes: list[int]) -> None:
    with serve_chargen() as served:
        served.faults.add("send", *takes)
        client, _ = served.connect()
        received = served.read(client, 3 * 95 * LINE)
        assert received == generated(len(received))


def test_chargen_holds_at_most_one_round_for_a_stuck_client_and_serves_others() -> None:
    with serve_chargen() as served:
        _, stuck = served.connect(buffer_bytes=4096)
        stuck.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        def is_stuck() -> bool:
            assert stuck.pending_bytes <= 95 * LINE
            return bool(stuck.pending_bytes)

        turn_until(served.reactor, is_stuck)
        sent = stuck.bytes_sent
        client, _ = served.connect()
        for _ in range(50):
            piece = served.read(client, 1)
            assert len(piece) >= 1
            assert is_stuck()
        assert stuck.bytes_sent - sent < 1 << 20  # the kernel may have had some room left


def test_chargen_discards_input_even_with_bytes_pending() -> None:
    """RFC 864: "any data received is thrown away"."""
    with serve_chargen() as served:
        client, connection = served.connect(buffer_bytes=4096)
        turn_until(served.reactor, lambda: connection.pending_bytes)
        client.send(b"stop!")
        turn_until(served.reactor, lambda: connection.bytes_received == 5)
        assert connection.state is State.OPEN
        received = served.read(client, 1 << 17)
        assert received == generated(len(received))


def test_fast_client_of_chargen_gets_one_round_a_turn() -> None:
    """The kernel could take more; other connections have their turn between two rounds."""
    with serve_chargen() as served:
        client, connection = served.connect()
        for _ in range(50):
            drain(client)
            before = connection.bytes_sent
            served.reactor.turn()
            assert connection.bytes_sent - before == 95 * LINE


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("end", [lambda client: client.shutdown(socket.SHUT_WR), reset], ids=["finish", "reset"])
def test_chargen_queues_no_calls_for_a_closed_client(end: Callable[[socket.socket], object], reads: bool) -> None:
    """RFC 864: "prepared for either the careful close or the rude abort". No call is queued again and again."""
    with serve_chargen() as served:
        client, connection = served.connect(buffer_bytes=None if reads else 4096)
        turn_until(served.reactor, lambda: reads or connection.pending_bytes)
        end(client)
        turn_until(served.reactor, lambda: connection.state is not State.OPEN)
        turn_idle(served.reactor)
        done: list[str] = []
        served.reactor.call_later(0.01, lambda: done.append("slept"))
        served.reactor.turn()
        assert done, "the turn didn't sleep: a call was waiting"


# ---------------------------------------------------------------- chat


def serve_chat() -> Served:
    room: StreamProtocol = load("chat")["Chat"]()
    return Served(lambda _: room)


ONE_LINE = st.binary(max_size=12).map(lambda line: line.replace(b"\n", b""))
SAID = st.lists(ONE_LINE, max_size=6)
PIECES = st.lists(st.integers(1, 9), max_size=80)


@given(SAID, SAID, ONE_LINE, PIECES)
@example([b"one", b"", b"two"], [b"three"], b"unfinished", [1] * 200)
def test_chat_sends_complete_lines_to_all_other_clients(
    one: list[bytes], two: list[bytes], rest: bytes, pieces: list[int]
) -> None:
    """Two clients send at once, in arbitrary pieces; a third only reads."""
    said = [[b"1" + line for line in one], [b"2" + line for line in two]]
    texts = [b"".join(line + b"\n" for line in lines) for lines in said]
    with serve_chat() as served:
        writers = [served.connect(), served.connect()]
        listener, _ = served.connect()
        served.faults.add("recv", *pieces)
        for (client, _), text in zip(writers, texts, strict=True):
            client.send(text + rest)
        sizes = [len(text + rest) for text in texts]
        turn_until(served.reactor, lambda: [connection.bytes_received for _, connection in writers] == sizes)
        assert [drain(client) for client, _ in reversed(writers)] == texts
        *heard, after_the_last = drain(listener).split(b"\n")
        assert after_the_last == b""
        assert [[line for line in heard if line[:1] == number] for number in (b"1", b"2")] == said
        assert len(heard) == len(one) + len(two)


@given(st.integers(0, 2_000), st.booleans(), PIECES)
@example(1024, True, [])
@example(1025, True, [])
@example(1025, False, [1025])
def test_chat_disconnects_a_client_with_a_line_that_is_too_long(length: int, ended: bool, pieces: list[int]) -> None:
    text = b"x" * length + b"\n" * ended
    with serve_chat() as served:
        client, connection = served.connect()
        listener, other = served.connect()
        served.faults.add("recv", *pieces)
        client.send(text)
        turn_until(served.reactor, lambda: connection.closed or connection.bytes_received == len(text))
        assert connection.closed == (length > 1024)
        assert drain(listener) == (text if ended and length <= 1024 else b"")
        assert not other.closed


def test_chat_disconnects_a_slow_client_and_others_get_every_line() -> None:
    line = b"y" * 999 + b"\n"
    with serve_chat() as served:
        slow, slow_connection = served.connect(buffer_bytes=4096)
        slow_connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        (writer, _), (listener, _) = served.connect(), served.connect()
        sent, heard = bytearray(), bytearray()

        def talk_on() -> bool:
            sent.extend(line[: writer.send(line)])
            heard.extend(drain(listener))
            assert slow_connection.pending_bytes <= 64 * 1024 + 64 * 1024 + 1024 + 1
            return slow_connection.closed

        turn_until(served.reactor, talk_on)
        assert len(sent) > 64 * 1024
        heard += served.read(listener, len(sent) - len(heard))
        assert heard == sent
        slow.settimeout(PATIENCE_S)
        with pytest.raises(ConnectionResetError):
            receive_to_end(slow)


def test_chat_forgets_a_client_that_left() -> None:
    room: Any = load("chat")["Chat"]()
    with Served(lambda _: room) as served:
        (client, _), (_, stays) = served.connect(), served.connect()
        client.shutdown(socket.SHUT_WR)
        turn_until(served.reactor, lambda: list(room.unfinished) == [stays])


# ---------------------------------------------------------------- ask


def loaded_ask(loop: Reactor | None = None) -> Callable[..., bytes]:
    """Return the client's function, on the test's loop if there is one."""
    names = load("ask")
    if loop is not None:
        names["Reactor"] = lambda: loop
    ask: Callable[..., bytes] = names["ask"]
    return ask


@pytest.fixture
def echo() -> Iterator[EchoThread]:
    with EchoThread() as made:
        yield made


@given(ONE_LINE, PIECES, PIECES)
@example(b"hello", [1] * 6, [1] * 6)
def test_ask_joins_an_answer_from_any_pieces(
    echo: EchoThread, question: bytes, received: list[int], sent: list[int]
) -> None:
    faults = Faults()
    faults.add("recv", *received)
    faults.add("send", *sent)
    before = open_descriptors()
    selector = RecordingSelector()
    asking = Reactor(selector=selector, sockets=FlakySockets(faults), clock=ManualClock(1000.0))
    assert loaded_ask(asking)(("127.0.0.1", echo.port), question, 5.0) == question
    echo.wait_for(lambda: not connections_of(echo.reactor))
    assert open_descriptors() == before
    assert selector.timeouts[-1] == 5.0  # the deadline is still ahead


def test_ask_raises_for_a_refused_connection() -> None:
    with pytest.raises(ConnectionRefusedError):
        loaded_ask()(("127.0.0.1", quiet_port()), b"hello", PATIENCE_S)


def test_ask_raises_for_a_connect_timeout() -> None:
    with silent_address() as address, pytest.raises(TimeoutError):
        loaded_ask()(address, b"hello", 0.05)


@pytest.mark.parametrize("piece", [b"", b"half an ans"])
def test_ask_raises_for_an_incomplete_answer_at_the_deadline(piece: bytes) -> None:
    with answering(lambda connection: connection.write(piece)) as address, pytest.raises(TimeoutError):
        loaded_ask()(address, b"hello", 0.05)


def test_ask_returns_at_the_deadline_if_the_server_sends_no_fin() -> None:
    """The server answers and reads the client's FIN. The deadline comes long before lingering ends."""
    clock = ManualClock()
    asking = Reactor(clock=clock)

    def serve(server: socket.socket) -> None:
        serving, _ = server.accept()
        with serving:
            serving.sendall(b"good day\n")
            receive_to_end(serving)
            clock.advance(1.5)
            asking.call_soon_threadsafe(int)
            thread_may_end.wait(PATIENCE_S)

    thread_may_end = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=[server], daemon=True)
        thread.start()
        assert loaded_ask(asking)(server.getsockname(), b"hello", 1.0) == b"good day"
        thread_may_end.set()
        thread.join(PATIENCE_S)


def hang_up(connection: Connection) -> None:
    connection.write(b"half an ans")
    connection.close()


@pytest.mark.parametrize(("answer", "error"), [(hang_up, ConnectionError), (Connection.abort, ConnectionResetError)])
def test_ask_raises_for_half_an_answer(answer: Callable[[Connection], object], error: type[OSError]) -> None:
    with answering(answer) as address, pytest.raises(error):
        loaded_ask()(address, b"hello", PATIENCE_S)


def test_ask_stops_reading_an_endless_answer() -> None:
    def pour(connection: Connection) -> None:
        connection.write(bytes(1 << 22))
        connection.close()

    names = load("ask")
    asked: list[Any] = []

    connection_made = names["Ask"].connection_made

    def note(asking: Any, connection: Connection) -> None:
        asked.append(asking)
        connection_made(asking, connection)

    names["Ask"].connection_made = note
    with answering(pour) as address, pytest.raises(ConnectionError, match="no end"):
        names["ask"](address, b"hello", PATIENCE_S)
    assert 65_536 < len(asked[0].answer) <= 2 * 65_536


@contextlib.contextmanager
def answering(answer: Callable[[Connection], object]) -> Iterator[Sequence[Any]]:
    """Run a server in a thread that calls `answer(connection)` for data. Yield its address."""

    class Answer(StreamProtocol):
        def data_received(self, connection: Connection, data: bytes) -> None:
            answer(connection)

    with LoopThread() as thread:
        yield thread.call(listen_tcp, thread.reactor, ("127.0.0.1", 0), Answer).address
