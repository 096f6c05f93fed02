"""Results go to stdout, and whether they have arrived there is looked at.

Law: a result that couldn't be written isn't taken for one that was: a full disk costs one line and another exit status.
Only a reader who has had enough (`| head`) is no mistake of anybody's.
"""

from __future__ import annotations

import sys

from reactor.console.commandline import give_up_stdout


def show(text: str) -> bool:
    """Write lines to stdout at once. Return whether that went well, or the reader didn't want them."""
    letters = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(letters, "replace").decode(letters), flush=True)  # a locale may lack some of ours
    except OSError as error:
        give_up_stdout()
        if isinstance(error, BrokenPipeError):
            return True
        sys.stderr.write(f"echo7: can't write the result: {error.strerror}; it is lost\n")
        return False
    return True
