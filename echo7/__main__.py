"""`python3 -m echo7`, and the command `echo7`: first the signals, then the command line.

Law: importing the rest of the program takes a while. Meanwhile no signal may be lost or print a traceback.
"""

import signal
import sys


def main() -> int:
    """Run the command line and return the exit status."""
    hold_signals(sys.argv[1:])
    from echo7 import cli

    return cli.main()


def hold_signals(argv: list[str]) -> None:
    """Let ^C end the process without a traceback, and hold back the signals that a service handles when it serves."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    commands = [argument for argument in argv if not argument.startswith("-")]
    # Windows has no signal masks
    if commands[:1] == ["serve"] and hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])


if __name__ == "__main__":
    sys.exit(main())
