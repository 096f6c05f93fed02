"""Sockets below the loop: how to make and address them, and what their errors mean. Imports nothing above it."""
