"""What a run tells of itself: steps and stages as lines, nothing with JSON, no value of Terraform's."""

from __future__ import annotations

import re

import pytest

from medport.cli.output import Output
from medport_deploy.cli.progress import telling, terraform_words
from medport_deploy.run.steps import Event
from medport_deploy.terraform.events import Diagnostic, Outputs, Working

STORY = [
    Event("deploy", "before"),
    Event("deploy", "running"),
    Event("deploy", "stage", "STARTING_DEPLOYMENT"),
    Event("deploy", "said", "no way straight to it"),
    Event("deploy", "failed", "Conflict: another"),
    Event("deploy", "undoing"),
    Event("deploy", "undone"),
    Event("upload", "skipped"),
]


def told(capsys: pytest.CaptureFixture[str], *, json: bool) -> str:
    with telling(Output(json=json)) as found:
        for event in STORY:
            found.on_event(event)
        found.on_terraform(Working("module.a.b", "create", "started"))
        found.note("a line")
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_each_step_has_a_line_for_its_begin_and_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    said = re.sub(r"^\[ *\d+\.\d s\] ", "", told(capsys, json=False), flags=re.MULTILINE)

    assert said.splitlines() == [
        "deploy …",
        "  STARTING_DEPLOYMENT",
        "  no way straight to it",
        "✗ deploy: failed (0.0 s): Conflict: another",
        "deploy: taking it back …",
        "↩ deploy: undone (0.0 s)",
        "= upload: skipped",
        "  module.a.b create started (0 s)",
        "a line",
    ]


def test_nothing_is_told_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, json=True) == ""


def test_control_characters_of_a_server_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with telling(Output()) as found:
        found.on_event(Event("deploy", "said", "\x1b]0;renamed\x07"))

    assert "\x1b" not in capsys.readouterr().err


def test_ctrl_c_is_answered_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with telling(Output()) as found:
        found.interrupts.ask()

    assert capfd.readouterr().err == "Stopping after the call under way. Ctrl-C again: do not wait for it.\n"


@pytest.mark.parametrize("event", [Outputs({"token": "secret"}), Diagnostic("warning", "old", detail="secret")])
def test_values_of_terraforms_are_not_told(event: Outputs | Diagnostic) -> None:
    assert terraform_words(event) == ""
