"""The extra `metrics`: without it one line says what to do, and the tests have what it needs."""

from __future__ import annotations

import sys
import tomllib

import pytest

from tests.support.basics import PROJECT
from tests.support.daemon import serve_config


def test_missing_extra_is_one_line_that_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Specified: "missing extra → one-line usage error that says `pip install 'echo7[metrics]'`"."""
    for name in [name for name in sys.modules if name.startswith(("h11", "echo7.metrics"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "h11", None)
    with pytest.raises(SystemExit) as end:
        serve_config("--metrics", "127.0.0.1:0")
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "argument --metrics: this needs prometheus-client and h11: pip install 'echo7[metrics]'" in line


def test_test_extra_includes_the_metrics_extra() -> None:
    """Otherwise its tests would be skipped everywhere."""
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras["metrics"]) <= set(extras["test"])
