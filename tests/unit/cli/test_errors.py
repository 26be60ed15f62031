"""Errors, exit codes, and which stream holds what."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from medport.cli import commands
from medport.cli.output import Output
from medport.errors import EXIT_INTERRUPTED, TABLE, ConfigError, MedportError, class_for

CANARY = "CANARY-Jane-Doe"
KEYS = ["backend", "exit_code", "field", "message", "remedy", "request_id", "retryable", "type"]


def _raising(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.error.__name__)
def test_exit_code_is_that_of_the_table(medport: Any, monkeypatch: pytest.MonkeyPatch, row: Any) -> None:
    error = row.error("it went wrong", field="here", remedy="mend it")
    monkeypatch.setattr(commands, "_whole", _raising(error))

    run = medport("chat", "Hello", "--no-stream", "--backend", "local", "--url", "http://localhost:1")

    assert run.code == row.exit_code
    assert run.out == ""
    assert run.err.splitlines() == [f"{row.error.__name__}: here: it went wrong", "  remedy: mend it"]


def test_error_of_the_server_has_its_class_request_and_profile(
    medport: Any, local: list[str], canned: Any
) -> None:
    canned.error = (403, {"error": {"code": 403, "message": "no", "status": "PERMISSION_DENIED"}})

    as_text = medport("chat", "Hello", *local)
    as_json = medport("chat", "Hello", "--json", *local)

    assert as_text.code == as_json.code == 1
    assert as_text.out == as_json.out == ""
    assert f"{class_for(403).__name__}: " in as_text.err
    assert "request req-1" in as_text.err
    assert sorted(as_json.error) == KEYS
    assert as_json.error["request_id"] == "req-1"


def test_unreachable_server_is_two_lines(medport: Any) -> None:
    run = medport("chat", "Hello", "--backend", "local", "--url", "http://127.0.0.1:1", "--timeout", "1")

    assert run.code == 1
    assert run.err.splitlines()[0].startswith("ConnectionFailed: url: the server cannot be reached")
    assert run.err.splitlines()[1].startswith("  remedy: ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["chatt"],
        ["chat"],
        ["chat", "Hello", "--max-tokens", "many"],
        ["chat", "Hello", "--no-such-option"],
        ["config"],
        ["config", "shown"],
        ["serve", "--no-such-option"],
        ["chat", "Hello", "--backend", "the moon"],
        ["chat", "Hello", "--profile", "nowhere"],
    ],
    ids=" ".join,
)
def test_wrong_usage_and_configuration_exit_with_64(medport: Any, arguments: list[str]) -> None:
    as_text = medport(*arguments)
    as_json = medport(*arguments, "--json")

    assert as_text.code == as_json.code == 64
    assert as_text.out == as_json.out == ""
    assert len(as_text.err.splitlines()) == 2
    assert sorted(as_json.error) == KEYS
    assert as_json.error["exit_code"] == 64


def test_json_after_a_double_dash_is_no_option(medport: Any) -> None:
    assert "remedy" in medport("chat", "--", "Hello", "--json").err


def test_interrupt_exits_with_130_and_no_traceback(medport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_whole", _raising(KeyboardInterrupt()))

    run = medport("chat", "Hello", "--no-stream", "--backend", "local", "--url", "http://localhost:1")

    assert (run.code, run.out, run.err) == (130, "", "interrupted\n")


@pytest.mark.parametrize("module", ["medport.errors", "typer", "medport_deploy.cli.app", "pydantic", "rich"])
def test_interrupt_while_modules_load_exits_with_130_and_no_traceback(module: str) -> None:
    program = (
        "import signal, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from medport.cli import main\n"
        "main(['deploy', '--help'])"
    )

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (ran.returncode, ran.stderr) == (EXIT_INTERRUPTED, "interrupted\n")


def test_fault_of_our_own_is_named_without_its_text(medport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_whole", _raising(RuntimeError(CANARY)))
    arguments = ("chat", CANARY, "--no-stream", "--backend", "local", "--url", "http://localhost:1")

    as_text = medport(*arguments)
    as_json = medport(*arguments, "--json")

    assert as_text.code == as_json.code == 1
    assert "RuntimeError" in as_text.err
    assert as_json.error["type"] == "RuntimeError"
    assert CANARY not in as_text.err + as_json.err


def test_debug_shows_the_traceback_without_local_variables(medport: Any, local: list[str]) -> None:
    run = medport("chat", "Hello", "-i", f"/nowhere/{CANARY}.dcm", "--debug", *local)

    assert run.code == 1
    assert "Traceback" in run.err
    assert CANARY not in run.err


def test_gone_reader_is_no_complaint(medport: Any, monkeypatch: pytest.MonkeyPatch, local: list[str]) -> None:
    monkeypatch.setattr(Output, "text", _raising(BrokenPipeError(32, "Broken pipe")))

    run = medport("chat", "Hello", *local)

    assert (run.code, run.err) == (1, "")


@pytest.mark.parametrize(
    ("module", "command"), [("medport_local.cli", "serve"), ("medport_local.phantom.demo", "demo")]
)
def test_command_of_a_missing_extra_says_how_to_install_it(
    medport: Any, monkeypatch: pytest.MonkeyPatch, module: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    run = medport(command)

    assert run.code == 64
    assert run.err.splitlines()[1] == '  remedy: pip install "medport[local]"'


def test_help_of_serve_is_that_of_the_local_package(medport: Any) -> None:
    run = medport("serve", "--help")

    assert run.code == 0
    assert "medport serve" in run.out
    assert "--snapshot" in run.out


def test_demo_runs_into_the_folder_and_gives_its_exit_code(
    medport: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from medport_local.phantom import demo

    seen = []
    monkeypatch.setattr(demo, "run", lambda out: seen.append(out) or 1)

    assert medport("demo", "--out", str(tmp_path)).code == 1
    assert seen == [tmp_path]


def test_help_names_every_exit_code(medport: Any) -> None:
    run = medport("--help")

    assert run.code == 0
    for words in ("0 done", "1 failed", "2 there are changes", "64 wrong usage", "130 interrupted"):
        assert words in " ".join(run.out.split())


@pytest.mark.parametrize("command", ["chat", "embed", "classify", "doctor", "version", "demo"])
def test_every_help_has_an_example(medport: Any, command: str) -> None:
    assert f"Example: medport {command}" in " ".join(medport(command, "--help").out.split())


def test_every_error_class_has_a_two_line_form(capsys: pytest.CaptureFixture[str]) -> None:
    error = MedportError("wrong\x1b[2J", remedy="do\x07 this", request_id="r", backend="onprem")

    Output().failure(error)

    assert "\x1b" not in (shown := capsys.readouterr().err)
    assert "\x07" not in shown
    assert "(profile onprem, request r)" in shown


@pytest.mark.parametrize(
    ("field", "message", "shown"),
    [
        ("ca", "holds no certificates", "ca: holds no certificates"),
        ("to", "the directory is not empty", "to: the directory is not empty"),
        ("key", "is no public key", "key: is no public key"),
        ("lock", "lock is no JSON", "lock is no JSON"),
        ("a.safetensors", "the file a.safetensors is short", "the file a.safetensors is short"),
        ("a.json", "the file aa.json is short", "a.json: the file aa.json is short"),
    ],
)
def test_field_is_shown_unless_the_message_names_it_itself(
    capsys: pytest.CaptureFixture[str], field: str, message: str, shown: str
) -> None:
    Output().failure(ConfigError(message, field=field))

    assert capsys.readouterr().err == f"ConfigError: {shown}\n"
