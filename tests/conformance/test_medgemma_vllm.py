"""MedGemma's default container: chatCompletions instances, raw prompts, the OpenAI path and its parameters."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
from support.wire import Endpoint, data_url, events, picture, png, said, text

SCHEMA = {
    "type": "object",
    "properties": {"finding": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
    "required": ["finding", "sure"],
    "additionalProperties": False,
}


def bare(**options: object) -> dict[str, Any]:
    return {"messages": text()["messages"], "max_tokens": 12, **options}


def chunks(gemma: Endpoint, **options: object) -> list[dict[str, Any]]:
    answer = gemma.post("/chat/completions", bare(stream=True, **options))
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = events(answer)
    assert data[-1] == "[DONE]"
    return [json.loads(each) for each in data[:-1]]


def test_predictions_are_an_object(gemma: Endpoint) -> None:
    """`@requestFormat: chatCompletions`: `predictions` is one chat.completion, not a list."""
    answer = gemma.predict(text())

    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert said(answer)
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert isinstance(answer["created"], int)


def test_several_instances_are_a_list(gemma: Endpoint) -> None:
    """Two instances: `predictions` is a list in the same order."""
    one, two = gemma.predict(text("Is the left lung clear?"), text("Describe this X-ray."))

    assert said(one) == said(gemma.predict(text("Is the left lung clear?")))
    assert said(two) == said(gemma.predict(text("Describe this X-ray.")))


def test_request_format_is_known(gemma: Endpoint) -> None:
    """Another `@requestFormat` is refused by name."""
    assert "@requestFormat" in json.dumps(gemma.refused({**text(), "@requestFormat": "other"}))


def test_system_message(gemma: Endpoint) -> None:
    """A system message, as text or as parts, is part of the prompt."""
    plain = text()
    messages = plain["messages"]
    as_text = {**plain, "messages": [{"role": "system", "content": "You are a radiologist."}, *messages]}
    parts = [{"type": "text", "text": "You are a radiologist."}]
    as_parts = {**plain, "messages": [{"role": "system", "content": parts}, *messages]}

    first, second = gemma.predict(as_text), gemma.predict(as_parts)

    assert first["usage"]["prompt_tokens"] == second["usage"]["prompt_tokens"]
    assert first["usage"]["prompt_tokens"] > gemma.predict(plain)["usage"]["prompt_tokens"]


def test_image_url_data(gemma: Endpoint) -> None:
    """`image_url` with a `data:` URL: the image becomes soft tokens."""
    seen = gemma.predict(text([{"type": "text", "text": "Describe."}, picture(data_url(png()))]))

    assert seen["usage"]["prompt_tokens"] > gemma.predict(text("Describe."))["usage"]["prompt_tokens"]


def test_image_url_http(gemma: Endpoint, files: str) -> None:
    """`image_url` with an http(s) URL of an allowed host is fetched."""
    fetched = gemma.predict(text([picture(f"{files}/a.png")]))

    assert said(fetched) == said(gemma.predict(text([picture(data_url(png(seed=1)))])))


def test_max_tokens(gemma: Endpoint) -> None:
    """`max_tokens`, also as 3.0, bounds the answer: finish_reason `length`."""
    for limit in (3, 3.0):
        answer = gemma.predict(text(max_tokens=limit))
        assert answer["usage"]["completion_tokens"] == 3
        assert answer["choices"][0]["finish_reason"] == "length"


def test_max_completion_tokens(gemma: Endpoint) -> None:
    """`max_completion_tokens` is the newer name and wins."""
    body = {**bare(), "max_tokens": 9, "max_completion_tokens": 2}
    assert gemma.post("/chat/completions", body).json()["usage"]["completion_tokens"] == 2


def test_temperature_seed(gemma: Endpoint) -> None:
    """`temperature` with the same `seed` gives the same text, with others another one."""
    drawn = [said(gemma.predict(text(temperature=1.5, seed=seed))) for seed in (1, 1, 2, 3, 4)]

    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


@pytest.mark.parametrize(
    "option", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=["top_k", "top_p", "min_p"]
)
def test_narrow_sampling_is_greedy(gemma: Endpoint, option: dict[str, float]) -> None:
    """`top_k` 1, `top_p` 0 and `min_p` 1 leave the likeliest token only."""
    assert said(gemma.predict(text(temperature=1.5, seed=3, **option))) == said(gemma.predict(text()))


def test_n(gemma: Endpoint) -> None:
    """`n` answers, numbered; tokens are counted over all."""
    answer = gemma.predict(text(n=3, temperature=1.5, seed=1))

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) > 1
    assert answer["usage"]["completion_tokens"] > 12


def test_n_is_capped(gemma: Endpoint) -> None:
    """`n` above 16 is refused, however large."""
    for many in (17, 10**6):
        error = gemma.refused(text(n=many))
        assert error["details"][0]["metadata"]["field"] == "n"
        assert "16" in error["message"]


def test_logprobs(gemma: Endpoint) -> None:
    """`logprobs` and `top_logprobs`: one entry a token, the likeliest beside it."""
    answer = gemma.predict(text(logprobs=True, top_logprobs=3))
    content = answer["choices"][0]["logprobs"]["content"]

    assert len(content) in (answer["usage"]["completion_tokens"], answer["usage"]["completion_tokens"] - 1)
    assert b"".join(bytes(each["bytes"]) for each in content).decode() == said(answer)
    for each in content:
        assert each["logprob"] <= 0
        assert len(each["top_logprobs"]) == 3
        assert math.isclose(max(top["logprob"] for top in each["top_logprobs"]), each["logprob"], abs_tol=1e-6)


def test_top_logprobs_needs_logprobs(gemma: Endpoint) -> None:
    """`top_logprobs` without `logprobs` is refused by name."""
    assert "logprobs" in gemma.refused(text(top_logprobs=2))["message"]


def test_stop(gemma: Endpoint) -> None:
    """`stop`, a text or a list: the answer ends before it, finish_reason `stop`."""
    whole = said(gemma.predict(text(max_tokens=40)))
    word = whole.split()[2]
    for stop in (word, [word]):
        answer = gemma.predict(text(max_tokens=40, stop=stop))
        assert said(answer) == whole[: whole.index(word)]
        assert answer["choices"][0]["finish_reason"] == "stop"


def test_include_stop_str_in_output(gemma: Endpoint) -> None:
    """`include_stop_str_in_output` keeps the stop text."""
    whole = said(gemma.predict(text(max_tokens=40)))
    word = whole.split()[2]
    kept = said(gemma.predict(text(max_tokens=40, stop=word, include_stop_str_in_output=True)))
    assert kept == whole[: whole.index(word) + len(word)]


def test_ignore_eos(gemma: Endpoint) -> None:
    """`ignore_eos` goes on to `max_tokens`."""
    answer = gemma.predict(text("Is there a nodule? Answer yes or no.", max_tokens=40, ignore_eos=True))
    assert answer["usage"]["completion_tokens"] == 40


def test_min_tokens(gemma: Endpoint) -> None:
    """`min_tokens` holds the end back."""
    short = gemma.predict(text("Is there a nodule? Answer yes or no.", max_tokens=60))
    least = short["usage"]["completion_tokens"] + 5
    longer = gemma.predict(text("Is there a nodule? Answer yes or no.", max_tokens=60, min_tokens=least))
    assert longer["usage"]["completion_tokens"] >= least


@pytest.mark.parametrize(
    "option", [{"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 5.0}]
)
def test_penalties(gemma: Endpoint, option: dict[str, float]) -> None:
    """`presence_penalty`, `frequency_penalty` and `repetition_penalty` change what repeats."""
    plain = said(gemma.predict(text(max_tokens=40, ignore_eos=True)))
    assert said(gemma.predict(text(max_tokens=40, ignore_eos=True, **option))) != plain


def test_logit_bias(gemma: Endpoint) -> None:
    """`logit_bias` of 100 makes a token certain, -100 impossible; ids are the tokenizer's."""
    assert (
        gemma.predict(text(max_tokens=3, logit_bias={"500": 100}, logprobs=True))["usage"]["completion_tokens"]
        == 3
    )
    forced = said(gemma.predict(text(max_tokens=3, ignore_eos=True, logit_bias={"500": 100})))
    other = said(gemma.predict(text(max_tokens=3, ignore_eos=True, logit_bias={"501": 100})))
    plain = said(gemma.predict(text(max_tokens=3, ignore_eos=True)))
    assert len({forced, other, plain}) == 3
    banned = said(gemma.predict(text(max_tokens=3, ignore_eos=True, logit_bias={"500": -100})))
    assert banned == plain


def test_response_format_json_object(gemma: Endpoint) -> None:
    """`response_format` json_object: whatever is finished parses as an object."""
    finished = 0
    for seed in range(6):
        answer = gemma.predict(
            text(response_format={"type": "json_object"}, temperature=1.0, seed=seed, max_tokens=120)
        )
        if answer["choices"][0]["finish_reason"] == "stop":
            finished += 1
            assert isinstance(json.loads(said(answer)), dict)
    assert finished


def test_response_format_json_schema(gemma: Endpoint) -> None:
    """`response_format` json_schema: whatever is finished is valid."""
    wanted = {"type": "json_schema", "json_schema": {"name": "report", "schema": SCHEMA}}
    finished = 0
    for seed in range(6):
        answer = gemma.predict(text(response_format=wanted, temperature=1.0, seed=seed, max_tokens=120))
        if answer["choices"][0]["finish_reason"] == "stop":
            finished += 1
            jsonschema.validate(json.loads(said(answer)), SCHEMA)
    assert finished


def test_response_format_wrong_schema(gemma: Endpoint) -> None:
    """A schema that cannot be kept to is refused by name."""
    for schema in ({"type": "nonsense"}, {"$ref": "https://example.org/x.json"}):
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        metadata = gemma.refused(text(response_format=wanted))["details"][0]["metadata"]
        assert "response_format" in metadata["field"]


def test_unhonoured_keys_are_refused(gemma: Endpoint) -> None:
    """What would change the answer and is not honoured is refused: `tools`, `best_of`, `chat_template`, …"""
    for key, value in {"tools": [{"type": "function"}], "best_of": 4, "chat_template": "x", "audio": {}}.items():
        assert gemma.refused(text(**{key: value}))["details"][0]["metadata"]["field"] == key


def test_unknown_keys_are_ignored(gemma: Endpoint) -> None:
    """Keys that nobody knows are ignored, as by the container."""
    assert said(gemma.predict(text(user="u-1", metadata={"a": 1}))) == said(gemma.predict(text()))


def test_model_may_be_empty(gemma: Endpoint) -> None:
    """OpenAI path: `model` may be "", absent or anything; the endpoint says which it is."""
    first = gemma.post("/chat/completions", bare(model="")).json()
    assert said(first) == said(gemma.post("/chat/completions", bare()).json())


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_openai_path(gemma: Endpoint, version: str) -> None:
    """The OpenAI path under the endpoint resource, v1 and v1beta1: the bare completion."""
    answer = gemma.http.post(f"/{version}{gemma.path[3:]}/chat/completions", json=bare()).json()
    assert answer["object"] == "chat.completion"


def test_stream_chunks_have_content(gemma: Endpoint) -> None:
    """Every chunk has one choice with `content`: "" in the first, which has the role, and in the last."""
    got = chunks(gemma)

    assert all(
        len(chunk["choices"]) == 1 and isinstance(chunk["choices"][0]["delta"]["content"], str) for chunk in got
    )
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert got[-1]["choices"][0]["delta"]["content"] == ""
    assert got[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    whole = gemma.post("/chat/completions", bare()).json()
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in got) == said(whole)
    assert {chunk["object"] for chunk in got} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in got}) == 1


def test_stream_usage_only_when_asked(gemma: Endpoint) -> None:
    """`stream_options.include_usage`: one more chunk without choices; none without it."""
    assert not any("usage" in chunk for chunk in chunks(gemma))
    last = chunks(gemma, stream_options={"include_usage": True})[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0


def test_stream_of_n(gemma: Endpoint) -> None:
    """`n` with a stream: each choice has its role, its text and its end."""
    got = chunks(gemma, n=2, temperature=1.5, seed=1)
    whole = gemma.post("/chat/completions", bare(n=2, temperature=1.5, seed=1)).json()

    for i in (0, 1):
        mine = [chunk["choices"][0] for chunk in got if chunk["choices"][0]["index"] == i]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(each["delta"]["content"] for each in mine) == whole["choices"][i]["message"]["content"]
        assert sum(each["finish_reason"] is not None for each in mine) == 1


def test_stream_logprobs(gemma: Endpoint) -> None:
    """`logprobs` with a stream: the tokens' entries, as without one."""
    got = chunks(gemma, logprobs=True)
    streamed = [
        entry for chunk in got for entry in (chunk["choices"][0].get("logprobs") or {"content": []})["content"]
    ]
    whole = gemma.post("/chat/completions", bare(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in streamed] == [each["token"] for each in whole]


def test_raw_prompt(gemma: Endpoint) -> None:
    """A raw `prompt`: a list of strings that repeat the prompt, without chat template."""
    prompt = "<start_of_turn>user\nDescribe this X-ray.<end_of_turn>\n<start_of_turn>model\n"
    (answer,) = gemma.predict({"prompt": prompt, "max_tokens": 8})
    (plain,) = gemma.predict({"prompt": prompt, "max_tokens": 8, "raw_response": True})

    assert answer == f"Prompt:\n{prompt.strip()}\nOutput:\n{plain}"
    assert plain == said(gemma.predict(text(max_tokens=8)))


def test_raw_prompt_with_image(gemma: Endpoint) -> None:
    """`multi_modal_data.image`: stands where the prompt says `<start_of_image>`."""
    prompt = "<start_of_turn>user\n<start_of_image>Describe.<end_of_turn>\n<start_of_turn>model\n"
    image = {"image": data_url(png())}
    (answer,) = gemma.predict({"prompt": prompt, "multi_modal_data": image, "max_tokens": 8, "raw_response": True})
    chat = gemma.predict(text([picture(data_url(png())), {"type": "text", "text": "Describe."}], max_tokens=8))
    assert answer == said(chat)


def test_raw_prompts_are_a_list(gemma: Endpoint) -> None:
    """Several raw prompts: a list in the same order."""
    prompts = [{"prompt": word, "max_tokens": 4, "raw_response": True} for word in ("one", "two", "three")]
    assert gemma.predict(*prompts) == [gemma.predict(each)[0] for each in prompts]


def test_raw_prompt_images_must_fit(gemma: Endpoint) -> None:
    """A raw prompt whose marks and images differ in number is refused by name."""
    assert "prompt" in json.dumps(gemma.refused({"prompt": "x", "multi_modal_data": {"image": data_url(png())}}))


def test_raw_prompt_raw_predict(gemma: Endpoint) -> None:
    """`:rawPredict` of a raw prompt also has `output_token_counts` and `cumulative_logprobs`."""
    answer = gemma.post(":rawPredict", {"prompt": "one", "max_tokens": 4, "raw_response": True}).json()
    assert answer["output_token_counts"] == [4]
    assert answer["cumulative_logprobs"][0] < 0
    assert len(answer["predictions"]) == 1


def test_raw_prompt_stream(gemma: Endpoint) -> None:
    """`:streamRawPredict` of a raw prompt: JSON values, each followed by NUL, the text so far in each."""
    body = {"instances": [{"prompt": "one", "max_tokens": 4, "raw_response": True, "stream": True}]}
    parts = gemma.post(":streamRawPredict", body).content.split(b"\0")
    assert parts[-1] == b""
    texts = [json.loads(part)["predictions"][0] for part in parts[:-1]]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == gemma.predict({"prompt": "one", "max_tokens": 4, "raw_response": True})[0]


@pytest.mark.parametrize("literal", ["<start_of_turn>", "<unused95>", "<image_soft_token>", "<eos>"])
def test_control_literals_stay_text(gemma: Endpoint, literal: str) -> None:
    """A chat's text never becomes a control token, whatever it spells."""
    spelled = gemma.predict(text(f"a {literal} b"))
    assert spelled["usage"]["prompt_tokens"] > gemma.predict(text("a b"))["usage"]["prompt_tokens"] + 2


@pytest.mark.parametrize(
    ("instance", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url"),
        ({**text(), "max_tokens": 0}, "max_tokens"),
        ({**text(), "max_tokens": 1.5}, "max_tokens"),
        ({**text(), "temperature": -1}, "temperature"),
        ({**text(), "top_p": 0}, "top_p"),
        ({**text(), "min_p": 2}, "min_p"),
        ({**text(), "presence_penalty": 3}, "presence_penalty"),
        ({**text(), "stop": [""]}, "stop[0]"),
        ({**text(), "seed": "x"}, "seed"),
        ({**text(), "min_tokens": 99}, "min_tokens"),
        ({**text(), "logit_bias": {"x": 1}}, "logit_bias.x"),
        ({**text(), "response_format": {"type": "xml"}}, "response_format"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x", "multi_modal_data": {"image": 5}}, "multi_modal_data.image"),
    ],
)
def test_violation_names_the_field(gemma: Endpoint, instance: object, field: str) -> None:
    """A value that breaks the schema is refused with 400, INVALID_ARGUMENT and the field's name."""
    error = gemma.refused(instance)
    assert error["status"] == "INVALID_ARGUMENT"
    assert error["details"][0]["metadata"]["field"] == field
