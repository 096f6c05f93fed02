"""Faster parts for Linux, each with a plain twin in the core, which never imports this folder. Read `batch` first."""
