"""What command-line programs share: one-line errors, and results on stdout. Imports nothing of this project."""
