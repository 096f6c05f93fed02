"""The old challenge, played again: the smallest echo server, its bytes times what `echo7 check` says of it."""
