"""Shows people what a loop does and holds: traces, narration, snapshots, slow callbacks. Read `trace` first."""
