"""`python3 -m echo7` is the same as the command `echo7`."""

import sys

from echo7.cli import main

if __name__ == "__main__":
    sys.exit(main())
