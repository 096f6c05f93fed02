"""The life of a service's processes: sockets, privileges, systemd, restart, workers. README.md has the picture.

May import everything of `echo7` but the command line.
"""

from __future__ import annotations

import os


class StartError(Exception):
    """One line: what has failed at the start, why, and what to do."""


def is_root() -> bool:
    """Tell whether this process has root's rights."""
    return hasattr(os, "geteuid") and os.geteuid() == 0
