"""What command-line programs share: one-line errors, and results on stdout.

Read `commandline` first. Imports nothing of ours.
"""
