"""reactor.lessons: how event loops work, in thirteen programs that you can read, run, break and write yourself.

Law: every claim is measured while you look. Each program is complete and fixes a fault of the one before; you see
the old program fail and the new one pass.

    python -m reactor.lessons              the staircase
    python -m reactor.lessons 4            a lesson, with its demonstration
    python -m reactor.lessons 4 --check FILE    judge your own program

Read in this order: the steps; then `promises` (what each step adds, as sentences), `checks` (how a server is judged by
them), `clients` (what a client does), `subject` and `host` (the two ends of the wire between the examiner and the
process that runs your program). `staircase` and `tour` hold the lessons' texts.
"""
