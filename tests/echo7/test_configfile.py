"""`--config FILE`: valid files, precedence, and one line for a mistake."""

from __future__ import annotations

import contextlib
import gc
import pathlib
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7.settings import Settings
from tests.echo7.test_cli import only_line, refused, run
from tests.support.basics import PROJECT
from tests.support.daemon import EchoProcess, serve_config


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "echo7.toml"


def config_of(file: pathlib.Path, text: str, *arguments: str) -> Settings:
    file.write_text(text)
    return serve_config(*arguments, "--config", str(file))


def mistake(capsys: pytest.CaptureFixture[str], file: pathlib.Path, text: str) -> str:
    """Return the error for such a file, without its name and the hint at the end."""
    file.write_text(text)
    gc.disable()  # deep nesting would make finalizers of other objects fail
    try:
        line = refused(capsys, "--config", str(file))
    finally:
        gc.enable()
    before, _, rest = line.partition(f"{file}: ")
    assert before == "echo7 serve: "
    return rest.removesuffix("; see 'echo7 serve --help'")


def test_empty_file_changes_nothing(file: pathlib.Path) -> None:
    assert config_of(file, "") == serve_config()


def test_switch_may_be_false(file: pathlib.Path) -> None:
    assert config_of(file, "no-tcp = false\nplain = false") == serve_config()
    assert config_of(file, "plain = false", "--plain").plain, "the command line wins"


def test_command_line_wins_wherever_it_stands(file: pathlib.Path) -> None:
    text = 'port = 1\nhost = ["::1", "127.0.0.1"]\nworkers = 2\nlog-level = "debug"'
    assert config_of(file, text, "--port", "7").port == 7, "also when it says the default"
    assert serve_config("--config", str(file), "--port", "2").port == 2
    assert config_of(file, text, "--host", "192.0.2.1").hosts == ("192.0.2.1",), "one list replaces the other"
    config = config_of(file, text, "--workers=1")
    assert (config.workers, config.log_level, config.hosts) == (1, "debug", ("::1", "127.0.0.1"))


def test_single_value_is_a_list_of_one(file: pathlib.Path) -> None:
    assert config_of(file, 'host = "127.0.0.1"').hosts == ("127.0.0.1",)


def test_numbers_may_be_written_as_on_the_command_line(file: pathlib.Path) -> None:
    assert config_of(file, 'port = "7007"\nworkers = "2"\ndrain-timeout = 3').port == 7007


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("port = 7007\nhost = \n", "Invalid value (at line 2, column 8); write it as TOML, such as port = 7007"),
        ("port: 7007", "Expected '=' after a key in a key/value pair (at line 1, column 5); write it as TOML"),
        ("port = 1\nport = 2", "Cannot overwrite a value (at "),
        ("prot = 7007", "there is no option 'prot'; did you mean 'port'?"),
        ("log_format = 'json'", "there is no option 'log_format'; did you mean 'log-format'?"),
        ("PORT = 7", "there is no option 'PORT'; did you mean 'port'?"),
        ("config = 'x'", "there is no option 'config'"),
        ("help = true", "there is no option 'help'"),
        ("qqq = 1", "there is no option 'qqq'; there are allow, answer-loops, "),
        (
            "[serve]\nport = 7",
            "has a table [serve]; tables have no meaning here: write every option at the top, without [serve]",
        ),
        ("port = true", "port is True, not a number or a text"),
        ("port = [7007]", "port is [7007], not a number or a text"),
        ("port = 1979-05-27", "port is datetime.date(1979, 5, 27), not a number or a text"),
        ("host = [true]", "host is [True], not a number or a text or a list of them"),
        (f"host = [{'1, ' * 99}[]]", "host is a list, not a number or a text or a list of them"),
        ("allow = []", "allow is an empty list, which has no clear meaning; name at least one, or leave it out"),
        ("deny = []", "deny is an empty list"),
        ("host = []", "host is an empty list"),
        ("no-udp = 1", "no-udp is 1, not true or false"),
        ("no-udp = 'yes'", "no-udp is 'yes', not true or false"),
        ("port = 65536", "argument --port: '65536' is not a whole number from 0 to 65535"),
        ("port = 7.0", "argument --port: '7.0' is not a whole number from 0 to 65535"),
        ("port = '--'", "argument --port: '--' is not a whole number from 0 to 65535"),
        ("drain-timeout = nan", "argument --drain-timeout: 'nan' is not a number of seconds from 0 to 86400"),
        ("log-level = 'loud'", "argument --log-level: 'loud' is not one of debug, info, warning, error"),
        ("host = ['']", "argument --host: an empty host is no address; use '*' for every address"),
        ("user = 'no-such-user'", "argument --user: there is no user 'no-such-user'"),
        ("port = " + "[" * 9999, "is nested too deeply; write it as TOML"),
        ("port = " + "9" * 9999, "Exceeds the limit"),
    ],
    ids=lambda text: text[:24],
)
def test_mistake_ends_with_one_line_that_names_the_file(
    capsys: pytest.CaptureFixture[str], file: pathlib.Path, text: str, why: str
) -> None:
    assert mistake(capsys, file, text).startswith(why)


@given(st.text())
@example("\x00")
@example("host = [['x']]")
def test_any_file_ends_with_one_line_at_most(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, text: str
) -> None:
    file = tmp_path / "any.toml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(SystemExit):
        serve_config("--config", str(file))
    assert len(capsys.readouterr().err.splitlines()) <= 1


def test_file_that_is_not_text_is_refused_by_its_byte(capsys: pytest.CaptureFixture[str], file: pathlib.Path) -> None:
    file.write_bytes(b"port = 7 # \xff")
    assert f"{file}: is not UTF-8 at byte 11; save it as UTF-8" in refused(capsys, "--config", str(file))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/no/such/file", "cannot be read: No such file or directory; check the path and its permissions"),
        ("/", "cannot be read: Is a directory; check the path"),
        ("", "cannot be read: No such file or directory; check the path"),
        ("nu\0l", "embedded null byte"),
    ],
)
def test_unreadable_file_ends_with_one_line(capsys: pytest.CaptureFixture[str], path: str, why: str) -> None:
    assert f"{path}: {why}" in refused(capsys, "--config", path)


def test_service_does_what_the_file_says(file: pathlib.Path) -> None:
    file.write_text('host = "127.0.0.1"\nno-udp = true')
    with EchoProcess("--config", str(file)) as echo:
        assert [line["event"] for line in echo.lines] == ["limits", "listening"]
        assert echo.finish() == 0


def test_file_in_the_documentation_is_accepted(file: pathlib.Path) -> None:
    [text] = re.findall(r"```toml\n(.*?)```", (PROJECT / "echo7/docs/howto/serve.md").read_text(), re.S)
    config = config_of(file, text)
    assert (config.udp, config.drain_timeout_s, config.hosts) == (False, 2.5, ("192.0.2.1", "2001:db8::1"))


def test_check_config_only_checks(file: pathlib.Path) -> None:
    file.write_text("port = 7007")
    done = run("serve", "--config", str(file), "--check-config")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    file.write_text("port = 70070")
    done = run("serve", "--config", str(file), "--check-config")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{file}: argument --port: '70070' is not" in only_line(done.stderr)
