"""`echo7 serve`: options → settings → a service under signals → an exit status.

    0  served, and ended in order        1  couldn't start, or the last serving socket broke, or workers failed
    2  the options make no sense         128 + n  ended at once by a second signal n

Law: options that make no sense are refused before anything is bound; the last log line says how the service ended.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NoReturn

from echo7 import assembly
from echo7.logs import log, report
from echo7.process import limits, restart
from echo7.process import previous as elder
from echo7.process.lifecycle import (
    COUNTERS_SIGNALS,
    ENDING_SIGNALS,
    RESTART_SIGNALS,
    Lifecycle,
    StartError,
    hold_signals,
)
from echo7.settings import ABOUT_SETTINGS, OPTIONS, Settings
from echo7.sockets.binding import BindError
from reactor.loop import Reactor
from reactor.sockets.opening import Socket

if TYPE_CHECKING:
    from echo7.metrics.service import Metrics
    from echo7.process.supervisor import Supervisor
    from echo7.tracing import Tracing

logger = logging.getLogger("echo7")

SIGNALS = ENDING_SIGNALS + COUNTERS_SIGNALS + RESTART_SIGNALS + report.DUMP_SIGNALS
EXAMPLES = """\
examples:
  echo7 serve                                  this machine only, port 7
  echo7 serve --port 7007                      no privilege needed
  echo7 serve --host '*'                       every address, IPv4 and IPv6
  echo7 serve --host 192.0.2.1 --host fe80::1%eth0 --no-udp
  echo7 serve --log-format json 2>>echo7.log
  echo7 serve --host '*' --allow 192.0.2.0/24 2001:db8::/32 --idle-timeout 600
  sudo echo7 serve --host '*' --user nobody    bind port 7 as root, serve as user nobody
  echo7 serve --config /etc/echo7.toml         options from a file, such as: port = 7007
  echo7 serve --workers auto                   a process for each CPU (Linux), and a supervisor

A systemd socket unit may hand the sockets in; --host and --port then have no effect.

signals:
  TERM, INT   stop in order; a second one ends at once
  HUP         restart without an outage: new program, new options from the file
  USR1        log the counters
  USR2        log what the loop has: handlers, buffers, timers

exit status:
  0  ended in order                       2        the options make no sense
  1  couldn't start, or a failure later   128 + n  ended at once by a second signal n
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "Serve the Echo Protocol over TCP and UDP."
    parser.epilog = EXAMPLES
    for title, options in groupby([*OPTIONS.values(), *ABOUT_SETTINGS], lambda option: option.group):
        group = parser.add_argument_group(title)
        for option in options:
            option.add_to(group.add_argument)


def run(options: argparse.Namespace) -> int:
    """Do what the options say, and return the exit status. Raise SystemExit(2) after one line if they make no sense."""
    config = configure(options)
    before = os.environ.get(restart.CHECK)
    if before is None and "check_config" not in options:
        return serve(config)
    mistake = restart.changed(before or "", config.fixed())
    if mistake is not None:
        options.parser.error(mistake)
    return 0


def configure(options: argparse.Namespace) -> Settings:
    """Return the settings: the defaults, then the file, then the command line. Raise SystemExit(2) after one line."""
    values: dict[str, Any] = {}
    if "config" in options:
        # Imported only when a file is given: it needs a parser of TOML.
        from echo7 import configfile

        try:
            values = configfile.read(options.config)
        except configfile.FileError as error:
            options.parser.error(f"{options.config}: {error}")
    for field, option in OPTIONS.items():
        if option.dest in options:
            value = getattr(options, option.dest)
            values[field] = tuple(value) if option.repeat else value
    settings = Settings(**values)
    mistake = settings.mistake()
    if mistake is not None:
        options.parser.error(mistake)
    return settings


def serve(config: Settings) -> int:
    """Serve until a signal ends it; return the exit status."""
    hold_signals()
    log.ensure_standard_descriptors()
    handler = log.set_up(config.log_level, config.log_format)
    descriptors = limits.raise_descriptor_limit()
    tracing = assembly.new_tracing(config)
    try:
        reactor = (
            assembly.new_reactor(config, tracing) if config.workers == 1 else Reactor()
        )  # a supervisor has no hurry
    except OSError as error:  # EMFILE before we have begun
        log.event(logger, logging.ERROR, "start_failed", f"cannot start: {error.strerror}; raise 'ulimit -n'")
        return 1
    with tracing or contextlib.nullcontext(), reactor:
        service = new_service(reactor, config, handler, descriptors, tracing)
        try:
            service.start()
        except (BindError, StartError) as error:
            name = "bind_failed" if isinstance(error, BindError) else "start_failed"
            log.event(logger, logging.ERROR, name, str(error))
            return 1
        service.run()
        ignore(SIGNALS)  # what was to be done is done, and none shall spoil the exit status now
        service.log_counters("stopped")
        return service.status


def new_service(
    reactor: Reactor, config: Settings, handler: log.StderrHandler, descriptors: int, tracing: Tracing | None
) -> Service | Supervisor:
    """Return what serves in this process, or looks after those that do. Only who needs several waits for the import."""
    if config.workers == 1:
        return Service(reactor, config, handler, descriptors, tracing)
    from echo7.process.supervisor import Supervisor

    return Supervisor(reactor, config, handler, descriptors)


def ignore(signums: Sequence[int]) -> None:
    """Have the process take no notice of some signals."""
    for signum in signums:
        signal.signal(signum, signal.SIG_IGN)


class Service:
    """One run of `echo7 serve`: an EchoServer, the signals, and what is logged about them."""

    def __init__(
        self,
        reactor: Reactor,
        config: Settings,
        handler: log.StderrHandler,
        descriptors: int,
        tracing: Tracing | None = None,
    ) -> None:
        self.status = 0
        self._reactor = reactor
        self._config = config
        self._handler = handler
        self._stopping = self._over = False
        self._life = Lifecycle(reactor, config)
        self._metrics: Metrics | None = None
        self._tracing = tracing
        self._server = assembly.new_server(config, descriptors, self._failed)

    def start(self) -> None:
        """Bind, drop what that needed, take the signals over, say where we serve. Raise BindError, StartError."""
        [bound] = self._life.open()
        if self._tracing is not None:
            with self._life.outages_forgiven():
                self._tracing.open()
        self._server.start(self._reactor, bound)
        if self._config.metrics is not None:
            with self._life.outages_forgiven():
                self._serve_metrics(self._config.metrics)
        self._life.drop_privileges()
        report.dump_on_signal(self._reactor)
        self._life.take_signals(self._end, lambda: self.log_counters("counters"))
        report.log_hints(bound.left_out, self._life.loopback_only)
        report.log_addresses(self._server.addresses)
        self._life.serving()

    def _serve_metrics(self, where: tuple[str, int]) -> None:
        from echo7.metrics.service import serve_metrics

        self._metrics = serve_metrics(self._reactor, where, self._server, self._handler)

    def run(self) -> None:
        """Run until all is over. In an elder, this doesn't return."""
        self._reactor.run()
        while self._life.restart_due and not self._over:
            self._life.restart(self._leaving)
            self._reactor.run()

    def log_counters(self, name: str) -> None:
        """Log what has been done so far."""
        report.log_counters(name, self._server.counters, self._handler.dropped)

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[tuple[list[int], list[int]]]:
        child = restart.Elder(self._reactor, self._be_elder)
        try:
            yield [child.pid], [child.leash.fileno()]
        except BaseException:
            child.dismiss()
            raise

    def _be_elder(self, start: Socket, leash: Socket) -> NoReturn:
        """Be the child, to its end. What runs here belongs to another process than the rest of this class."""
        status = 1
        try:
            if elder.prepare(self._reactor, self._config, start, self._let_go):
                self._life.leave()
                status = elder.run(self._reactor, self._server, self._config, leash)
        except BaseException as error:  # it must not get into the parent's frames, whatever it is
            logger.critical("the elder failed: %r", error, exc_info=error, extra={"event": "failed"})
        finally:
            for handler in logger.handlers:
                handler.flush()
            os._exit(status)

    def _let_go(self) -> None:
        """Leave to the new image what only one can have."""
        if self._tracing is not None:
            self._tracing.leave()
        if self._metrics is not None:
            self._metrics.close()

    def _end(self, signum: int) -> None:
        if self._stopping:
            self.status = 128 + signum
            self._server.abort()
            self._life.aborting()
            self._finish()
            return
        text = f"stopping on {signal.Signals(signum).name}: delivering for up to {self._config.drain_timeout_s:g} s"
        log.event(logger, logging.INFO, "stopping", text, signal=signal.Signals(signum).name)
        self._stop()

    def _failed(self) -> None:
        log.event(logger, logging.ERROR, "failed", "the last serving socket is broken: ending")
        self.status = 1
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._life.stopping()
        self._server.stop(lambda: self._life.when_alone(self._finish))

    def _finish(self) -> None:
        self._over = True
        self._reactor.stop()
