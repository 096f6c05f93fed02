"""Standard output that never delays a probe."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import pty
import select
from collections.abc import Iterator

import pytest

from echo7.probe.report.writer import MOST_WAITING_BYTES, LineWriter
from tests.support.basics import open_descriptors


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        yield reader, writer
    finally:
        for descriptor in (reader, writer):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def read(reader: int) -> bytes:
    found = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(reader, 1 << 16):
            found += piece
    return found


def test_lines_are_written_at_once_and_in_order() -> None:
    with pipe() as (reader, writer):
        before = open_descriptors()
        output = LineWriter(writer)
        output.line("one")
        output.line("zwö")
        assert read(reader) == "one\nzwö\n".encode()
        assert not output.is_terminal
        output.finish()
        output.finish()
        assert open_descriptors() == before
        os.write(writer, b"still blocking, still open")


def test_stopped_reader_loses_lines_and_delays_no_probe() -> None:
    """Law: "no write blocks. When the reader stops reading, lines are dropped and counted"."""
    with pipe() as (reader, writer):
        output = LineWriter(writer)
        line = "x" * 999
        while not output.dropped:
            output.line(line)
        assert output.waiting_bytes > MOST_WAITING_BYTES - 1000
        output.live("not now")
        received = read(reader)
        output.line("after")
        received += read(reader)
        while output.waiting_bytes:
            output.push()
            received += read(reader)
        output.finish()
        lines = received.decode().splitlines()
        assert lines[-1] == "after"
        assert set(lines[:-1]) == {line}
        assert output.error is None


def test_closed_pipe_is_an_error() -> None:
    with pipe() as (reader, writer):
        os.close(reader)
        output = LineWriter(writer)
        output.line("one")
        assert output.error is not None
        assert output.error.errno == errno.EPIPE
        output.line("two")
        output.live("two")
        output.finish()
        assert not output.waiting_bytes


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_an_error() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    output = LineWriter(descriptor)
    output.line("x")
    assert output.error is not None
    assert output.error.errno == errno.ENOSPC
    output.finish()
    os.close(descriptor)


def test_file_is_written_to_directly(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "out"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    output = LineWriter(descriptor)
    output.line("to a file \udcff")
    output.finish()
    os.close(descriptor)
    assert path.read_bytes() == b"to a file \\udcff\n"


def test_closed_descriptor_is_an_error_and_no_exception() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    output = LineWriter(writer)
    output.line("x")
    assert output.error is not None
    assert output.error.errno == errno.EBADF


def test_live_line_replaces_the_one_before() -> None:
    master, slave = pty.openpty()
    output = LineWriter(slave)
    assert output.is_terminal
    output.live("one")
    output.live("")
    expected, shown = b"\rone\x1b[K\r\x1b[K", b""
    while len(shown) < len(expected):
        shown += os.read(master, 100)
    assert shown == expected
    output.finish()
    os.close(master)
    os.close(slave)


def test_finish_blocks_until_the_rest_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if another process has made the descriptor non-blocking; then it waits for room."""
    with pipe() as (reader, writer):
        os.set_blocking(writer, False)
        output = LineWriter(writer)
        while not output.dropped:
            output.line("y" * 999)
        total, received, waits = output.waiting_bytes, [b""], 0

        def wait(readable: object, writable: object, broken: object) -> None:
            nonlocal waits
            waits += 1
            received.append(read(reader))

        monkeypatch.setattr(select, "select", wait)
        output.finish()
        received.append(read(reader))
        assert waits > 1
        assert len(b"".join(received)) > total
        assert not output.waiting_bytes
