"""``medport chat``."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

NOTICE = "Preliminary: needs independent verification by a qualified person."
CANARY = "CANARY-Jane-Doe"


def test_answer_and_notice_are_on_stdout_and_nothing_on_stderr(medport: Any, local: list[str]) -> None:
    run = medport("chat", "Describe", *local)

    assert run.code == 0
    first, second = run.out.splitlines()
    assert first == "No acute finding."
    assert second.startswith(NOTICE)
    assert run.err == ""


def test_json_is_the_result_as_one_object(medport: Any, local: list[str]) -> None:
    run = medport("chat", "Describe", "--json", *local)

    assert sorted(run.json) == [
        "finish_reason", "notice", "preliminary", "provenance", "text", "thinking", "usage",
    ]  # fmt: skip
    assert run.json["preliminary"] is True
    assert run.json["provenance"]["request_id"] == "req-1"
    assert run.err == ""


def test_stream_prints_the_same_text_and_the_notice(medport: Any, local: list[str]) -> None:
    run = medport("chat", "Describe", "--stream", *local)

    first, second = run.out.splitlines()
    assert first.strip() == "No acute finding."
    assert second.startswith(NOTICE)


def test_stream_as_json_is_deltas_and_then_the_result(medport: Any, local: list[str]) -> None:
    run = medport("chat", "Describe", "--stream", "--json", *local)

    lines = [json.loads(line) for line in run.out.splitlines()]
    assert [line["type"] for line in lines] == ["delta"] * (len(lines) - 1) + ["result"]
    assert "".join(line["text"] for line in lines[:-1]).strip() == lines[-1]["text"] == "No acute finding."
    assert lines[-1]["notice"] == NOTICE


def test_every_option_reaches_the_request(medport: Any, local: list[str], canned: Any, images: list[str]) -> None:
    options = {
        "max-tokens": "7", "temperature": "0", "top-p": "0.5", "top-k": "0", "seed": "0",
        "system": "A radiologist.",
    }  # fmt: skip
    given = [part for key, value in options.items() for part in (f"--{key}", value)]

    run = medport(
        "chat", "Describe", "-i", images[0], "--image", images[2], "--stop", "a", "--stop", "b", *given, *local
    )

    assert run.code == 0, run.err
    instance = canned.asked[0]["instances"][0]
    assert {k: instance[k] for k in ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")} == {
        "max_tokens": 7, "temperature": 0.0, "top_p": 0.5, "top_k": 0, "seed": 0, "stop": ["a", "b"],
    }  # fmt: skip
    assert instance["messages"][0] == {"role": "system", "content": "A radiologist."}
    assert [part["type"] for part in instance["messages"][1]["content"]] == ["image_url", "image_url", "text"]


def test_thinking_is_in_the_json_and_never_in_a_log(medport: Any, local: list[str], canned: Any) -> None:
    canned.text = f"<unused94>thought\n{CANARY}<unused95>Clear."

    as_text = medport("chat", "Describe", "--thinking", *local)
    as_json = medport("chat", "Describe", "--thinking", "--json", *local)

    assert "Clear." in as_text.out
    assert CANARY not in as_text.out + as_text.err
    assert as_json.json["thinking"] == CANARY


def test_dash_reads_the_prompt_from_stdin(
    medport: Any, local: list[str], canned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("  What is this?\n"))

    assert medport("chat", "-", *local).code == 0
    assert canned.asked[0]["instances"][0]["messages"][0]["content"] == "What is this?"


def test_cut_answer_is_said_on_stderr(medport: Any, local: list[str], canned: Any) -> None:
    canned.finish_reason = "length"

    assert "cut" in medport("chat", "Describe", *local).err
    assert medport("chat", "Describe", "--json", *local).err == ""


def test_control_characters_of_an_answer_do_not_reach_the_terminal(
    medport: Any, local: list[str], canned: Any
) -> None:
    canned.text = "clear\x1b[2J\x1b]0;owned\x07 lungs\x9b"

    for arguments in ((), ("--stream",)):
        run = medport("chat", "Describe", *arguments, *local)
        assert not {"\x1b", "\x07", "\x9b"} & set(run.out)


def test_api_key_is_taken_from_the_environment(
    medport: Any, local: list[str], canned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDPORT_API_KEY", "secret-key")

    assert medport("chat", "Describe", *local).code == 0
    assert canned.keys == {"Bearer secret-key"}


def test_text_of_a_prompt_is_never_on_stderr(medport: Any, local: list[str], canned: Any) -> None:
    canned.error = (
        400,
        {"error": {"code": 400, "message": f"bad prompt '{CANARY}'", "status": "INVALID_ARGUMENT"}},
    )

    for form in ((), ("--json",), ("--stream",), ("--debug",)):
        run = medport("chat", CANARY, "-i", f"/nowhere/{CANARY}.dcm", *form, *local)
        assert run.code == 1
        assert CANARY not in run.err + run.out
        run = medport("chat", CANARY, *form, *local)
        assert run.code == 1
        assert CANARY not in run.err + run.out


def test_url_alone_means_the_server_there(medport: Any, canned: Any) -> None:
    run = medport("chat", "Describe", "--url", canned.url, "--json")

    assert run.json["provenance"]["kind"] == "local"
    assert len(canned.asked) == 1
