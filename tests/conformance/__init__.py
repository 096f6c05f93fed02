"""The same tests on the real kernel and on the simulated one."""
