"""Judging the programs of the lessons."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from reactor.lessons.promises import Promise, Verdict, judge
from reactor.lessons.subject import Program

JUDGES = 8  # lessons' programs that are judged at the same time


def judge_together(pairs: Iterable[tuple[Promise, Program]]) -> list[Verdict]:
    """Judge programs by promises, several at a time; those that this machine was too busy for once more, alone."""
    every = list(pairs)
    with ThreadPoolExecutor(JUDGES) as pool:
        verdicts = list(pool.map(lambda pair: judge(*pair), every))
    for i, pair in enumerate(every):
        for _ in range(3):
            if verdicts[i].kept is None:
                verdicts[i] = judge(*pair)
    return verdicts
