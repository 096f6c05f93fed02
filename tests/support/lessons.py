"""The programs of the lessons, checked by their promises."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from reactor.lessons.promises import Promise, Verdict, judge
from reactor.lessons.subject import Program

AT_ONCE = 8  # a check mostly waits
TRIES = 3


def check_together(pairs: Iterable[tuple[Promise, Program]]) -> list[Verdict]:
    """Check programs by promises, several at a time. Repeat alone what a busy machine couldn't measure."""
    every = list(pairs)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        verdicts = list(pool.map(lambda pair: judge(*pair), every))
    for i, pair in enumerate(every):
        for _ in range(TRIES):
            if verdicts[i].kept is None:
                verdicts[i] = judge(*pair)
    return verdicts
