"""`python -m reactor.player`: arguments, and one line that says what came of it.

Law: what is wrong is said in one line on stderr: what, why, and what to do. Status 2 for how it was called, 1 for what
failed. Nothing but a page that was asked for with `-o -` goes to stdout.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import webbrowser
from collections.abc import Iterator, Sequence

from reactor.console.commandline import OneLineParser, explain_statuses
from reactor.player.files import STDIO, Failure, load, write
from reactor.player.gallery import bundled
from reactor.player.page import page
from reactor.player.tracefile import Trace

FROM_STDIN, OF_GALLERY = "reactor-trace.html", "reactor-gallery.html"
INTERRUPTED = 130  # 128 + SIGINT, as a shell says it
EXIT_STATUSES = {
    "0": "the page is written",
    "1": "the trace can't be read, or the page can't be written or opened",
    "2": "the options make no sense",
    str(INTERRUPTED): "ended by Ctrl-C",
}
RECORDING = """\
Trace a loop with Reactor(observer=Trace(sink)), where sink is JsonLines.open(FILE);
see reactor/player/README.md.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parse(arguments)
    try:
        return play(options)
    except Failure as failure:
        say(str(failure))
        return 1
    except BrokenPipeError:  # who reads our output has seen enough
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options. Exit with status 2 for those that can't be meant."""
    parser = OneLineParser(
        prog="python -m reactor.player",
        description="Make one HTML page on which a trace of the loop can be stepped through, forward and back.",
        epilog=f"{RECORDING}\n{explain_statuses(EXIT_STATUSES)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("trace", metavar="TRACE", nargs="?", help="a trace in JSON Lines; - is the standard input")
    parser.add_argument("--gallery", action="store_true", help="play the traces that come with the player")
    parser.add_argument("-o", dest="output", metavar="FILE", help="the page; by default beside the trace; - is stdout")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--force", action="store_true", help="overwrite FILE even if it isn't a page of the player")
    options = parser.parse_args(arguments)
    if options.gallery == (options.trace is not None):
        parser.error("what is to be played? Either TRACE or --gallery")
    if options.output == STDIO and options.open:
        parser.error("a page on the standard output can't be opened: leave out --open, or name a file")
    return options


def play(options: argparse.Namespace) -> int:
    """Make the page. Raise Failure."""
    traces = bundled() if options.gallery else [load(options.trace)]
    for remark in remarks(traces):
        say(remark)
    path = write(page(traces), target(options), force=options.force)
    if path is None:
        return 0
    say(f"the page is in {path}")
    if options.open and not webbrowser.open(path.resolve().as_uri()):
        raise Failure(f"no browser could be started: open {path} yourself")
    return 0


def target(options: argparse.Namespace) -> str:
    """Return where the page goes."""
    if options.output is not None:
        return str(options.output)
    if options.gallery:
        return OF_GALLERY
    return FROM_STDIN if options.trace == STDIO else str(pathlib.Path(options.trace).with_suffix(".html"))


def remarks(traces: Sequence[Trace]) -> Iterator[str]:
    """Yield what isn't in the page though it was in the file, or should have been."""
    for trace in traces:
        if trace.cut_short:
            yield "the last line is broken off, and left out"
        if trace.left_out:
            events = f"{trace.left_out:,} further event" + ("s are" if trace.left_out > 1 else " is")
            yield f"{events} left out: the page has the first {len(trace.events):,}"


def say(text: str) -> None:
    """Tell the user one thing."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
