"""Observation of `echo7 serve`: the loop that assembly makes, and its slow callbacks."""

from __future__ import annotations

import importlib
import logging
import select
import selectors
import time

import pytest

from echo7 import EchoServer, assembly
from echo7.logs import report
from reactor.fastpath.epoll import LeanEpollSelector
from reactor.loop import Reactor
from reactor.observe.watch import Watch
from tests.support.daemon import serve_config


def test_slow_callbacks_are_named_on_the_loop_that_serves(caplog: pytest.LogCaptureFixture) -> None:
    """Issue: "Slow-callback warning that names the callback (`--slow-callback MS`)"."""
    config = serve_config("--slow-callback", "20", "--busy-poll", "100")
    with assembly.new_reactor(config) as loop:
        assert isinstance(loop.observer, Watch)
        server = EchoServer(["127.0.0.1"], 0)
        server.start(loop)
        loop.call_soon(time.sleep, 0.03)
        loop.turn()
        server.stop()
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage().startswith("slow callback: time.sleep blocked the loop for ")


@pytest.mark.parametrize("arguments", [[], ["--plain"]])
def test_loop_without_options_is_not_watched(arguments: list[str]) -> None:
    """An observer that is off costs nothing."""
    with assembly.new_reactor(serve_config(*arguments)) as loop:
        assert not isinstance(loop.observer, Watch)


def test_plain_and_a_system_without_epoll_use_the_standard_selector(monkeypatch: pytest.MonkeyPatch) -> None:
    with assembly.new_selector(serve_config("--plain")) as selector:
        assert type(selector) is selectors.DefaultSelector
    if hasattr(select, "epoll"):
        with assembly.new_selector(serve_config()) as selector:
            assert type(selector) is LeanEpollSelector
    monkeypatch.delattr("select.epoll", raising=False)
    with assembly.new_selector(serve_config()) as selector:
        assert type(selector) is selectors.DefaultSelector


def test_loop_closed_before_its_run_imports_no_more_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module would be read at the exit, without any use."""
    read: list[str] = []
    monkeypatch.setattr(importlib, "import_module", read.append)
    loop = Reactor()
    report.dump_on_signal(loop)
    loop.close()
    assert read == []
    with Reactor() as loop:
        report.dump_on_signal(loop)
        loop.turn()
        assert read == [*report.READ_AHEAD]
