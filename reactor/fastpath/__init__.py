"""Fast paths of Linux, each with a plain twin in the core. The core never imports this folder.

Read `batch` first. May import the core and `reactor.sockets`.
"""
