"""Settings: every option is declared once, and reaches every place that derives from the declaration."""

from __future__ import annotations

import importlib.util
import pathlib
import tomllib
from typing import Any, NamedTuple

import pytest

from echo7 import assembly
from echo7.policy.ports import SourcePorts
from echo7.policy.rate import Rate, SourcePrefix
from echo7.policy.sources import BY_BIND, SourceLimits
from echo7.process.privileges import Identity
from echo7.settings import ABOUT_SETTINGS, OPTIONS, Settings
from tests import manpage
from tests.reference import tables
from tests.support.daemon import serve_config


class Row(NamedTuple):
    """How one option is given, on the command line and in a file, and what its field becomes."""

    field: str
    words: str
    toml: str
    value: Any


ROWS = [
    Row("hosts", "--host 127.0.0.1 --host *", 'host = ["127.0.0.1", "*"]', ("127.0.0.1", "*")),
    Row("port", "--port 0", "port = 0", 0),
    Row("tcp", "--no-tcp", "no-tcp = true", False),
    Row("udp", "--no-udp", "no-udp = true", False),
    Row("max_connections", "--max-connections 3", "max-connections = 3", 3),
    Row("max_connections_per_source", "--max-connections-per-source 2", "max-connections-per-source = 2", 2),
    Row("keep_silent", "--keep-silent", "keep-silent = true", True),
    Row("udp_rate", "--udp-rate 100", 'udp-rate = "100:200"', Rate(100, 200)),
    Row("udp_rate_total", "--udp-rate-total 1000:5000", 'udp-rate-total = "1000:5000"', Rate(1000, 5000)),
    Row("source_prefix", "--source-prefix 24,48", 'source-prefix = "24,48"', SourcePrefix(24, 48)),
    Row("rate_log_only", "--rate-log-only", "rate-log-only = true", True),
    Row("allow", "--allow 10.0.0.0/8 ::/0 --allow 10.0.0.1", 'allow = ["10.0.0.0/8", "::/0", "10.0.0.1"]',
        ("10.0.0.0/8", "::/0", "10.0.0.1")),
    Row("deny", "--deny 192.0.2.128/25", 'deny = "192.0.2.128/25"', ("192.0.2.128/25",)),
    Row("refuse_source_ports", "--refuse-source-ports own,<1024", 'refuse-source-ports = "own,<1024"',
        SourcePorts(own=True, responders=False, listed=frozenset(range(1024)))),
    Row("answer_loops", "--answer-loops", "answer-loops = true", True),
    Row("idle_timeout_s", "--idle-timeout 60", "idle-timeout = 60", 60.0),
    Row("backlog", "--backlog 4", "backlog = 4", 4),
    Row("socket_buffer_bytes", "--socket-buffer 4096", "socket-buffer = 4096", 4096),
    Row("drain_timeout_s", "--drain-timeout 0.5", "drain-timeout = 0.5", 0.5),
    Row("user", "--user 4711:4712", 'user = "4711:4712"', Identity(4711, 4712, "4711:4712")),
    Row("workers", "--workers 2", "workers = 2", 2),
    Row("busy_poll_s", "--busy-poll 200", "busy-poll = 200", 0.0002),
    Row("sandbox", "--sandbox require", 'sandbox = "require"', "require"),
    Row("plain", "--plain", "plain = true", True),
    Row("log_level", "--log-level debug", 'log-level = "debug"', "debug"),
    Row("log_format", "--log-format json", 'log-format = "json"', "json"),
    Row("metrics", "--metrics [::1]:9107", 'metrics = "[::1]:9107"', ("[::1]", 9107)),
    Row("slow_callback_s", "--slow-callback 50", "slow-callback = 50", 0.05),
    Row("trace", "--trace t.jsonl", 'trace = "t.jsonl"', "t.jsonl"),
    Row("narrate", "--narrate", "narrate = true", True),
]  # fmt: skip
EXTRA = all(importlib.util.find_spec(name) for name in ("h11", "prometheus_client"))
EVERY_FIELD = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.field)


def test_every_field_has_a_row() -> None:
    assert [row.field for row in ROWS] == list(Settings._fields) == list(OPTIONS)


@EVERY_FIELD
def test_option_sets_its_field_and_no_other(row: Row, tmp_path: pathlib.Path) -> None:
    """The command line and the file mean the same. Only the fields marked so are compared at a restart."""
    if row.field == "metrics" and not EXTRA:
        pytest.skip("prometheus-client and h11 aren't installed: pip install -e '.[test]'")
    file = tmp_path / "echo7.toml"
    file.write_text(row.toml)
    expected = Settings()._replace(**{row.field: row.value})
    assert serve_config(*row.words.split()) == serve_config("--config", str(file)) == expected != Settings()
    option, before, now = OPTIONS[row.field], Settings().fixed(), expected.fixed()
    assert [option.key] == list(tomllib.loads(row.toml))
    assert [flag for flag in now if now[flag] != before[flag]] == ([option.flag] if option.restart else [])


def test_fixed_settings_are_addresses_transports_workers_user_and_sandbox() -> None:
    """Other versions compare this form with theirs."""
    assert Settings().fixed() == {
        "--host": "", "--port": "7", "--no-tcp": "False", "--no-udp": "False", "--workers": "1", "--user": "",
        "--sandbox": "auto",
    }  # fmt: skip
    settings = Settings(hosts=("::1", "127.0.0.1"), tcp=False, user=Identity(4711, 4712, "someone"))
    found = settings.fixed()
    assert (found["--host"], found["--no-tcp"], found["--user"]) == ("::1 127.0.0.1", "True", "4711:4712")


def test_defaults_are_the_documented_ones() -> None:
    """Issue: "`--port 7`", loopback, both transports, "`--drain-timeout` (default 5 s)", text."""
    assert serve_config() == Settings() == Settings(
        hosts=(), port=7, tcp=True, udp=True, max_connections=None, allow=(), deny=(),
        max_connections_per_source=BY_BIND, udp_rate=BY_BIND, udp_rate_total=None, rate_log_only=False,
        refuse_source_ports=SourcePorts(own=True, responders=True), answer_loops=False, backlog=1024,
        socket_buffer_bytes=None, drain_timeout_s=5.0, idle_timeout_s=None, busy_poll_s=0.0, plain=False,
        log_level="info", log_format="text", slow_callback_s=None, sandbox="auto", metrics=None, trace=None,
        narrate=False, workers=1, user=None, source_prefix=SourcePrefix(32, 56), keep_silent=False,
    )  # fmt: skip
    words = {option.flag: option.default for option in OPTIONS.values() if option.parse is not None}
    assert words == words | {
        "--port": "7", "--backlog": "1024", "--drain-timeout": "5", "--log-level": "info", "--workers": "1",
    }  # fmt: skip
    assert not set(words.values()) & {"", "None", "()"}, "an empty default needs words"


@pytest.mark.parametrize("option", [*OPTIONS.values(), *ABOUT_SETTINGS], ids=lambda option: option.key)
def test_option_is_explained_in_the_reference_and_in_the_manual(option: Any) -> None:
    name = f"{option.flag} {option.metavar}".rstrip()
    [row] = [
        line
        for line in tables.options().partition("## `echo7 check`")[0].splitlines()
        if line.startswith(f"| `{name}` |")
    ]
    assert row.endswith("| refused: needs a restart |") == option.restart
    part = manpage.PAGE.read_text().partition(".SS \\fBecho7 serve\\fR")[2].partition(".SS")[0].replace("\\", "")
    assert f"fB{option.flag}fR" in part
    for text in (option.explained, option.default):
        assert text in part
        assert text.replace("'*'", "`*`").replace("'<1024'", "`<1024`") in row


def test_word_none_removes_a_limit() -> None:
    """A limit has a default, so its absence needs a word."""
    line = "--max-connections-per-source none --udp-rate none --udp-rate-total none --refuse-source-ports none"
    config = serve_config(*line.split(), "--idle-timeout", "none")
    nothing = SourcePorts(own=False, responders=False)
    assert assembly.source_limits(config) == SourceLimits(ports=nothing, keep_silent=False)
    assert config.idle_timeout_s is None


def test_limits_for_sources_reach_the_policy() -> None:
    line = "--allow ::/0 --deny ::1 --max-connections-per-source 2 --udp-rate 1 --udp-rate-total 2 --rate-log-only"
    more = "--refuse-source-ports own --source-prefix 24,48 --answer-loops --keep-silent"
    config = serve_config(*line.split(), *more.split())
    ports = SourcePorts(own=True, responders=False)
    expected = SourceLimits(
        ("::/0",), ("::1",), 2, Rate(1, 2), Rate(2, 4), log_only=True, ports=ports, answer_loops=True,
        prefix=SourcePrefix(24, 48), keep_silent=True,
    )  # fmt: skip
    assert assembly.source_limits(config) == expected


def test_workers_share_limits_for_the_whole_service() -> None:
    line = "--host 127.0.0.1 --workers 4 --max-connections-per-source 10 --udp-rate 100 --udp-rate-total 1000:2001"
    limits = assembly.source_limits(serve_config(*line.split()))
    assert (limits.connections, limits.udp_rate, limits.udp_rate_total) == (3, Rate(100, 200), Rate(250, 501))
