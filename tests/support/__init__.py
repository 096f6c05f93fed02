"""What the tests share, by subject. Nothing here sleeps to synchronise."""
