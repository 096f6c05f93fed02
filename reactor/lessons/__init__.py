"""reactor.lessons: how event loops work, in thirteen programs that you can read, run, break and write yourself.

Law: nothing is only said. Each program is complete, and fixes what the one before gets wrong; that it does, and that
the one before did, is measured while you look.

    python -m reactor.lessons              the staircase
    python -m reactor.lessons 4            a lesson, with its demonstration
    python -m reactor.lessons 4 --check FILE    judge your own

Read it in this order: the steps themselves; then `promises` (what each of them adds, as sentences), `checks` (how a
server is judged by them), `clients` (what a client does), `subject` and `host` (the two ends of the wire between the
examiner and the process in which your program runs). `staircase` and `tour` are the lessons' own words.
"""
