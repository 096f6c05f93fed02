"""Write results to stdout and check that they were written.

Law: a result that can't be written (full disk) costs one line on stderr and another exit status. A reader that stops
early (`| head`) is no error.
"""

from __future__ import annotations

import sys

from reactor.console.commandline import lost


def show(text: str) -> bool:
    """Write lines to stdout and flush. Return False if that fails, except for a reader that has stopped."""
    letters = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(letters, "replace").decode(letters), flush=True)  # a locale may lack a character
    except OSError as error:
        return lost(error) == 0
    return True
