"""`--refuse-source-ports SPEC`: the text says exactly which ports are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.policy.guard import RESPONDER_PORTS, Guard
from echo7.policy.ports import DEFAULT_PORTS, NAMES, SourcePorts, parse_ports
from reactor.fastpath.datagrams import Single
from tests.echo7.policy.carriers import refusal

HOST, OWN = "192.0.2.7", 7007
ports = st.integers(0, 65_535)
words = st.sampled_from(["default", "own", "responders"])
ranges = st.tuples(ports, ports).map(sorted)
items = st.one_of(
    words.map(lambda word: (word, set[int]())),
    ports.map(lambda port: (str(port), {port})),
    ranges.map(lambda ends: (f"{ends[0]}-{ends[1]}", set(range(ends[0], ends[1] + 1)))),
    st.integers(1, 65_536).map(lambda end: (f"<{end}", set(range(end)))),
)


def refused(spec: str, port: int) -> str | None:
    return refusal(Guard([OWN], parse_ports(spec)), (HOST, port))


@given(st.lists(items, min_size=1, max_size=4), st.sampled_from(["", " "]))
def test_list_of_ports_is_the_union_of_its_items(chosen: list[tuple[str, set[int]]], space: str) -> None:
    """Issue: "`none`, `<1024`, lists and ranges"."""
    said = {text for text, _ in chosen}
    assert parse_ports(f"{space},".join(text for text, _ in chosen)) == SourcePorts(
        own=bool(said & {"default", "own"}),
        responders=bool(said & {"default", "responders"}),
        listed=frozenset().union(*(listed for _, listed in chosen)),
    )


@pytest.mark.parametrize(
    ("spec", "port", "reason"),
    [
        ("default", 53, "source_port_responder"),
        ("default", OWN, "source_port_own"),
        ("default", 1000, None),
        ("none", 53, None),
        ("none", OWN, None),
        ("own", 53, None),
        ("own", OWN, "source_port_own"),
        ("responders", OWN, None),
        ("responders", 19, "source_port_responder"),
        ("<1024", 1023, "source_port_listed"),
        ("<1024", 1024, None),
        ("<1024,default", 53, "source_port_responder"),
        ("6000-6002", 5999, None),
        ("6000-6002", 6002, "source_port_listed"),
        ("6000-6002", 6003, None),
        ("own,7000-7010", OWN, "source_port_own"),
        ("1,65535", 65_535, "source_port_listed"),
        *((spec, 0, "source_port_zero") for spec in (*NAMES, "<1024", "0", "0-7")),
    ],
)
def test_port_is_refused_for_one_reason_own_before_responder_before_listed(
    spec: str, port: int, reason: str | None
) -> None:
    """Issue: "(default: 0, own ports, the known responders; …)"; 0 can't be answered in any case."""
    assert refused(spec, port) == reason


def test_default_refuses_own_and_responder_ports() -> None:
    assert parse_ports("default") == DEFAULT_PORTS
    guard = Guard([OWN])
    found = {port for port in range(65_536) if guard.refusals(Single((b"", (HOST, port), b"")), 1)}
    assert found == {0, OWN, *RESPONDER_PORTS}


@pytest.mark.parametrize(
    "spec", ["", ",", "7,", "x", "-1", "65536", "7-", "-7", "9-7", "0-65536", "<0", "<", "<65537", "< 9", "٧", "1-2-3",
             "9" * 5000, "none,7", "own,none", "Default"]
)  # fmt: skip
def test_invalid_spec_is_refused_in_one_line(spec: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*(not a port|none)[^\n]*$"):
        parse_ports(spec)
