"""What a loop does and has, shown to people: traces, sentences, snapshots, slow callbacks.

Read `trace` first. May import the core through its public doors; the core never imports this folder.
"""
