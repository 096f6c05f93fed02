"""Chance: faults from one seed, and the script that repeats them."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor.testing import CALLBACK_FAULTS, CATALOGUE, FAULTS, USUAL_FAULTS, Fault, everything, random_mix
from reactor.testing.chance import Chance, parse_script, source_of, subsets


def chance(mix: dict[str, float] | None = None, script: str = "", seed: int = 0) -> Chance:
    return Chance(random.Random(seed), mix or {}, script, random.Random(seed))


def drawn(source: Chance, call: str, times: int) -> list[str]:
    return [str(source.inject(fault)) for _ in range(times) if (fault := source.draw(call)) is not None]


FAULT = st.builds(
    lambda name, number, amount: Fault(name.split(".")[0], number, name.split(".")[1], amount),
    st.sampled_from(FAULTS),
    st.integers(1, 10**6),
    st.integers(0, 65_536),
)


@given(faults=st.lists(FAULT))
def test_script_reads_back_as_its_faults(faults: list[Fault]) -> None:
    assert parse_script(" ".join(map(str, faults))) == faults


def test_missing_amount_is_one() -> None:
    assert parse_script("send#3=short\n accept#1=EMFILE:7") == [
        Fault("send", 3, "short", 1),
        Fault("accept", 1, "EMFILE", 7),
    ]


@pytest.mark.parametrize(
    "word", ["send", "send#3", "send#=short", "send#x=short", "send#1=loss", "sent#1=short", "send#1=short:x", "#1=:"]
)
def test_unknown_fault_in_a_script_is_refused(word: str) -> None:
    """A typing error in a script must not give a world without faults."""
    with pytest.raises(ValueError, match="is no fault"):
        parse_script(word)
    with pytest.raises(ValueError, match="is no fault"):
        chance(script=word)


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ({"send.loss": 0.1}, "is no fault"),
        ({"nonsense": 0.1}, "is no fault"),
        ({"send.short": -0.1}, "from 0 to 1"),
        ({"send.short": 1.1}, "from 0 to 1"),
        ({"send.short": float("nan")}, "from 0 to 1"),
    ],
)
def test_impossible_mix_is_refused(mix: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        chance(mix)


def test_without_a_mix_no_fault_happens() -> None:
    source = chance({"recv.short": 0.0})
    assert not [fault for call in CATALOGUE for _ in range(100) if (fault := source.draw(call))]


def test_probability_of_one_faults_every_call() -> None:
    source = chance({"recv.short": 1.0})
    assert len(drawn(source, "recv", 50)) == 50
    assert not drawn(source, "send", 50)


def test_probabilities_above_one_are_shared_out() -> None:
    """Each kind gets its share, and every call has a fault."""
    source = chance({"recv.short": 1.0, "recv.EINTR": 1.0})
    assert len(drawn(source, "recv", 1000)) == 1000
    counts = source.counts()
    assert counts.keys() == {"recv.short", "recv.EINTR"}
    assert min(counts.values()) > 400


def test_faults_come_as_often_as_their_probability() -> None:
    source = chance({"recv.short": 0.2, "recv.EINTR": 0.05})
    drawn(source, "recv", 10_000)
    counts = source.counts()
    assert 1800 < counts["recv.short"] < 2200
    assert 400 < counts["recv.EINTR"] < 600


def test_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    mix = everything(0.1)
    first, same, other = (drawn(chance(mix, seed=seed), "send", 200) for seed in (1, 1, 2))
    assert first == same != other


def test_source_of_zeros_has_no_faults() -> None:
    """hypothesis shrinks an example by drawing 0."""

    class Zeros(random.Random):
        def random(self) -> float:
            return 0.0

    source = Chance(Zeros(), dict.fromkeys(FAULTS, 0.05), "", Zeros())
    assert not drawn(source, "recv", 10)


def test_script_faults_come_at_their_numbers_once() -> None:
    source = chance(script="send#2=short:9 recv#1=EINTR")
    assert drawn(source, "send", 5) == ["send#2=short:9"]
    assert drawn(source, "recv", 5) == ["recv#1=EINTR:1"]
    assert source.script() == "send#2=short:9 recv#1=EINTR:1"


def test_fault_without_effect_is_not_in_the_script() -> None:
    source = chance(script="send#1=short")
    assert source.draw("send") is not None
    assert source.script() == ""
    assert source.counts() == {}


def test_plan_counts_calls_from_now() -> None:
    source = chance()
    drawn(source, "send", 3)
    source.plan("send", "EAGAIN")
    source.plan("send", "short", 5, after=2)
    assert drawn(source, "send", 10) == ["send#4=EAGAIN:1", "send#6=short:5"]
    with pytest.raises(ValueError, match="is no fault"):
        source.plan("send", "loss")


def test_script_takes_precedence_over_the_mix() -> None:
    source = chance({"send.EINTR": 1.0}, "send#2=short:7")
    assert [word.split(":")[0] for word in drawn(source, "send", 3)] == ["send#1=EINTR", "send#2=short", "send#3=EINTR"]


@pytest.mark.parametrize("name", [name for name in FAULTS if name.split(".")[1].startswith("E")])
def test_fault_named_after_an_errno_gives_that_error(name: str) -> None:
    call, _, kind = name.partition(".")
    error = Fault(call, 1, kind, 1).error()
    assert error.errno == getattr(errno, kind)
    assert type(error) is type(OSError(error.errno, ""))


def test_usual_faults_exclude_those_of_sockets_and_callbacks() -> None:
    of_sockets = {"socket.EMFILE", "socket.ENFILE", "socket.ENOBUFS", "socket.ENOMEM"}
    assert set(FAULTS) - set(USUAL_FAULTS) == of_sockets | set(CALLBACK_FAULTS)


def test_random_mix_has_a_few_faults_from_rare_to_frequent() -> None:
    """Each world has a few faults, so that none hides the effects of another."""
    mixes = [random_mix(random.Random(seed)) for seed in range(50)]
    assert {name for mix in mixes for name in mix} == set(USUAL_FAULTS)
    assert all(len(mix) < len(USUAL_FAULTS) for mix in mixes)
    assert all(0.003 < probability < 0.2 for mix in mixes for probability in mix.values())
    assert random_mix(random.Random(1)) == mixes[1]
    assert random_mix(random.Random(1), among=["send.short"]).keys() <= {"send.short"}


def test_everything_has_every_fault_of_a_system_call() -> None:
    assert everything(0.01) == dict.fromkeys(set(FAULTS) - set(CALLBACK_FAULTS), 0.01)


def test_seed_may_be_a_number_or_a_source() -> None:
    assert source_of(7).random() == source_of(7).random()
    own = random.Random(1)
    assert source_of(own) is own


@given(data=st.data())
def test_seed_may_be_hypothesis_data(data: st.DataObject) -> None:
    assert 0 <= source_of(data).random() < 1


@given(count=st.integers(0, 40))
def test_subsets_leave_out_all_then_halves_then_smaller_pieces(count: int) -> None:
    """In the end, each single fault is left out once."""
    faults = [Fault("send", number, "short", 1) for number in range(1, count + 1)]
    found = list(subsets(faults))
    assert all(len(left) < len(faults) for left in found)
    assert not faults or found[0] == []
    for index in range(count if count > 1 else 0):
        assert faults[:index] + faults[index + 1 :] in found
