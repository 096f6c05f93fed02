"""`python -m reactor.player`: the command line.

Law: an error is one line on stderr: what is wrong, why, and what to do. The exit status is 2 for wrong usage, 1 for a
failure. Only a page requested with `-o -` goes to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import webbrowser
from collections.abc import Iterator, Sequence

from reactor.console.commandline import OneLineParser, explain_statuses, run_command
from reactor.player.files import STDIO, Failure, load, write
from reactor.player.gallery import bundled
from reactor.player.page import page
from reactor.player.tracefile import Trace

FROM_STDIN, OF_GALLERY = "reactor-trace.html", "reactor-gallery.html"
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_STATUSES = {
    "0": "the page is written",
    "1": "the trace can't be read, or the page can't be written or opened",
    "2": "invalid options",
    str(INTERRUPTED): "ended by Ctrl-C",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run_command(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    options = parse(arguments)
    try:
        return play(options)
    except Failure as failure:
        say(str(failure))
        return 1
    except BrokenPipeError:  # the reader of our output has left
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options. Exit with status 2 if they contradict each other."""
    parser = OneLineParser(
        prog="python -m reactor.player",
        description="Make one HTML page on which you step through a trace of the loop, forward and back.",
        epilog=f"To record a trace, see reactor/player/README.md.\n\n{explain_statuses(EXIT_STATUSES)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("trace", metavar="TRACE", nargs="?", help="a trace in JSON Lines; - is stdin")
    parser.add_argument("--gallery", action="store_true", help="play the traces that come with the player")
    parser.add_argument("-o", dest="output", metavar="FILE", help="the page (default: beside the trace); - is stdout")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--force", action="store_true", help="overwrite FILE even if it isn't a page of the player")
    options = parser.parse_args(arguments)
    if options.gallery == (options.trace is not None):
        parser.error("what to play? Give either TRACE or --gallery")
    if options.output == STDIO and options.open:
        parser.error("argument --open: a page on stdout can't be opened; name a file with -o")
    return options


def play(options: argparse.Namespace) -> int:
    """Make the page; return the exit status. Raise Failure."""
    traces = bundled() if options.gallery else [load(options.trace)]
    for remark in remarks(traces):
        say(remark)
    path = write(page(traces), target(options), force=options.force)
    if path is None:
        return 0
    say(f"page written: {path}")
    if options.open and not webbrowser.open(path.resolve().as_uri()):
        raise Failure(f"can't start a browser: open {path} yourself")
    return 0


def target(options: argparse.Namespace) -> str:
    """Return where the page goes."""
    if options.output is not None:
        return str(options.output)
    if options.gallery:
        return OF_GALLERY
    return FROM_STDIN if options.trace == STDIO else str(pathlib.Path(options.trace).with_suffix(".html"))


def remarks(traces: Sequence[Trace]) -> Iterator[str]:
    """Yield remarks on events that are missing from the page."""
    for trace in traces:
        if trace.cut_short:
            yield "the last line is incomplete, and left out"
        if trace.left_out:
            events = f"{trace.left_out:,} further event" + ("s are" if trace.left_out > 1 else " is")
            yield f"{events} left out: the page has the first {len(trace.events):,}"


def say(text: str) -> None:
    """Print one line on stderr."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
