"""Sockets below the loop: how they are made and addressed, and what their errors mean. Imports nothing above it."""
