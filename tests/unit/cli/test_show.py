"""``medport config show``, ``medport version``, colour and completion."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from medport.cli.output import Output

SECRET = "a-secret-key"


def test_each_setting_says_where_it_came_from(
    medport: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "medport.toml"
    file.write_text("default_profile = 'a'\n[profiles.a]\nbackend = 'local'\nurl = 'https://one.example'\n")
    monkeypatch.setenv("MEDPORT_LANGUAGE", "de")

    run = medport("config", "show", "--json", "--timeout", "5")

    settings = {each["key"]: (each["value"], each["origin"]) for each in run.json["settings"]}
    assert sorted(run.json) == ["chain", "profile", "settings"]
    assert run.json["chain"] == [{"profile": "a", "backend": "local"}]
    assert settings["profiles.a.url"] == ("https://one.example", str(file))
    assert settings["profiles.a.language"] == ("de", "MEDPORT_LANGUAGE")
    assert settings["profiles.a.timeout_s"] == ("5.0", "arguments")
    assert settings["profiles.a.max_attempts"][1] == "default"


def test_secrets_are_masked(medport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPORT_API_KEY", SECRET)

    for form in ((), ("--json",)):
        run = medport("config", "show", "--backend", "local", "--url", "https://a.example", *form)
        assert run.code == 0
        assert "a.example" in run.out
        assert SECRET not in run.out + run.err


def test_a_password_in_a_url_is_refused_and_not_shown(medport: Any) -> None:
    for form in ((), ("--json",)):
        run = medport("config", "show", "--backend", "local", "--url", f"https://me:{SECRET}@a.example", *form)
        assert run.code == 64
        assert SECRET not in run.out + run.err


def test_version_reads_the_packages_without_importing_them(medport: Any) -> None:
    before = set(sys.modules)

    run = medport("version", "--json")

    assert sorted(run.json) == ["medport", "packages", "python"]
    assert run.json["python"] == platform.python_version()
    assert {"torch", "transformers", "pydicom", "google-auth"} <= set(run.json["packages"])
    assert not {"torch", "transformers", "pydicom", "google"} & (set(sys.modules) - before)
    assert medport("version").out.startswith("medport ")


def test_missing_package_has_no_version(medport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medport.cli.commands._PACKAGES", ("no-such-package",))

    assert medport("version", "--json").json["packages"] == {"no-such-package": None}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(medport: Any, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    # The shell is asked for by name where it cannot be told from the parent process.
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell, raising=False)

    run = medport("--show-completion", shell)

    assert run.code == 0
    assert "_MEDPORT_COMPLETE" in run.out


@pytest.mark.parametrize("columns", [80, 30])
def test_table_that_words_do_not_fit_in_is_lines_of_names_and_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setattr(Output, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", str(columns))

    Output(color=False).table(("when", "lock"), [("2026-11-27T08:00:00Z", "3f9c21d03f9c"), ("now", "0a")])
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]

    assert ("  when  2026-11-27T08:00:00Z" in shown) is (columns == 30)
    assert all(any(word in line for line in shown) for word in ("2026-11-27T08:00:00Z", "3f9c21d03f9c"))


@pytest.mark.parametrize(("option", "variable"), [(["--no-color"], ""), ([], "1")])
def test_colour_can_be_switched_off(
    medport: Any, local: list[str], monkeypatch: pytest.MonkeyPatch, option: list[str], variable: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[32m" in medport("doctor", *local).out or "\x1b[1;32m" in medport("doctor", *local).out
    monkeypatch.setenv("NO_COLOR", variable)

    run = medport("doctor", *option, *local)

    assert "\x1b[3" not in run.out


def test_progress_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Output().progress("images", 3) as advance:
        advance(3)

    assert capsys.readouterr() == ("", "")


def test_progress_of_a_slow_job_is_on_stderr_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("medport.cli.output.PROGRESS_AFTER_S", 0.0)

    with Output().progress("images", 3) as advance:
        sys.stdout.write("result")
        advance(3)

    out, err = capsys.readouterr()
    assert out == "result"
    assert "images" in err
