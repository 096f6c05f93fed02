"""What command-line programs share: one-line errors, results on stdout, programs that they run.

Imports nothing of this project.
"""
