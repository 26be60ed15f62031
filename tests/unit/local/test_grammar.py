"""Answers that must be JSON: what comes out is valid, and a hostile schema is refused in good time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from transformers import GemmaTokenizer

from medport.errors import InputError
from medport.wire.chat import Message
from medport_local.engine.codecs import TextCodec
from medport_local.engine.engine import EngineLimits, TorchEngine
from medport_local.engine.grammar import KEPT, Grammar, Grammars
from medport_local.engine.loading import load_gemma
from medport_local.engine.sampler import Choice, Sampler
from medport_local.engine.schema import FIELD, MAX_BYTES, MAX_DEPTH, _weight
from medport_local.engine.sequence import GenerationRequest, Sampling, Sequence
from medport_local.phantom import weights_dir
from medport_local.snapshot import Snapshot, open_snapshot

REPORT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "view": {"enum": ["PA", "AP", "侧位"]},
        "findings": {
            "type": "array",
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {
                    "label": {"type": "string", "maxLength": 6},
                    "box": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1000},
                            "minItems": 4, "maxItems": 4},
                    "side": {"anyOf": [{"enum": ["left", "right"]}, {"type": "null"}]},
                },
                "required": ["label", "box", "side"],
                "additionalProperties": False,
            },
        },
        "urgent": {"type": "boolean"},
    },
    "required": ["view", "findings", "urgent"],
    "additionalProperties": False,
}  # fmt: skip
YES_OR_NO: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def phantom() -> Iterator[TorchEngine]:
    snapshot = open_snapshot(weights_dir("medgemma"))
    engine = TorchEngine(load_gemma(snapshot), snapshot, limits=EngineLimits(max_running=8))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def toy(gemma_snapshot: Snapshot) -> Iterator[TorchEngine]:
    """Random weights: it wants to say anything but JSON."""
    engine = TorchEngine(load_gemma(gemma_snapshot), gemma_snapshot, limits=EngineLimits(max_running=8))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(GemmaTokenizer.from_pretrained(weights_dir("medgemma")))


def new_grammars(codec: TextCodec) -> Grammars:
    return Grammars(codec.pieces(), codec.encode, eos_ids=frozenset({1, 106}), control_ids=codec.control_ids)


@pytest.fixture(scope="module")
def grammars(codec: TextCodec) -> Grammars:
    return new_grammars(codec)


def asked(engine: TorchEngine, text: str, **sampling: Any) -> GenerationRequest:
    options = {"max_tokens": 300, "temperature": 1.0, **sampling}
    tokens = engine.prompts.build([Message(role="user", content=text)])
    return GenerationRequest(tokens=tokens, sampling=Sampling(**options))


async def answer(engine: TorchEngine, request: GenerationRequest) -> tuple[str, str | None]:
    text, finish = "", None
    async for event in engine.submit(request):
        text, finish = text + event.text, event.finish_reason
    return text, finish


def answers(engine: TorchEngine, *requests: GenerationRequest) -> list[tuple[str, str | None]]:
    async def together() -> list[tuple[str, str | None]]:
        return list(await asyncio.gather(*(answer(engine, each) for each in requests)))

    return asyncio.run(together())


def made(engine: TorchEngine, schema: Mapping[str, Any]) -> Grammar:
    assert engine.grammars is not None
    return engine.grammars.json_schema(schema)


@pytest.mark.parametrize("model", ["phantom", "toy"])
@pytest.mark.parametrize("schema", [REPORT, YES_OR_NO], ids=["report", "yes or no"])
def test_finished_answers_fulfil_the_schema(
    model: str, schema: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    engine: TorchEngine = request.getfixturevalue(model)
    grammar = made(engine, schema)

    done = answers(engine, *(asked(engine, "Describe this X-ray.", grammar=grammar, seed=i) for i in range(8)))

    finished = [text for text, finish in done if finish == "stop"]
    assert len(finished) >= 4
    assert len(set(finished)) > 1
    for text in finished:
        jsonschema.validate(json.loads(text), schema)
    assert engine._sampler.held == 0


@pytest.mark.parametrize("model", ["phantom", "toy"])
def test_any_object_is_an_object_or_cut_off(model: str, request: pytest.FixtureRequest) -> None:
    engine: TorchEngine = request.getfixturevalue(model)
    assert engine.grammars is not None
    grammar = engine.grammars.json_object()

    done = answers(
        engine, *(asked(engine, "Who are you?", grammar=grammar, seed=i, max_tokens=120) for i in range(8))
    )

    for text, finish in done:
        assert text.startswith("{")
        if finish == "stop":
            assert isinstance(json.loads(text), dict)
        else:
            assert finish == "length"


@pytest.mark.parametrize("model", ["phantom", "toy"])
def test_greedy_answer_fulfils_the_schema_too(model: str, request: pytest.FixtureRequest) -> None:
    engine: TorchEngine = request.getfixturevalue(model)

    ((text, finish),) = answers(engine, asked(engine, "Who?", grammar=made(engine, YES_OR_NO), temperature=0.0))

    assert finish == "stop"
    jsonschema.validate(json.loads(text), YES_OR_NO)


def test_grammars_in_one_batch_do_not_touch_each_other(toy: TorchEngine) -> None:
    rows = [
        asked(toy, "a", seed=1, grammar=made(toy, REPORT), max_tokens=120),
        asked(toy, "b", seed=2, grammar=made(toy, YES_OR_NO), max_tokens=120),
        asked(toy, "c", seed=3, max_tokens=60),
        asked(toy, "d", temperature=0.0, max_tokens=60),
        asked(toy, "e", seed=4, grammar=made(toy, REPORT), max_tokens=120),
    ]

    together = answers(toy, *rows)

    assert together == [answers(toy, each)[0] for each in rows]
    assert together[0] != together[4]


def test_left_in_the_middle_the_matcher_is_freed(toy: TorchEngine) -> None:
    assert toy.grammars is not None
    grammar = toy.grammars.json_object()

    async def leave_early() -> None:
        async for _ in toy.submit(asked(toy, "a", grammar=grammar, seed=1, min_tokens=200)):
            break

    asyncio.run(leave_early())

    end = time.monotonic() + 5
    while toy._sampler.held or toy.stats().held:
        assert time.monotonic() < end, "it was never freed"
        time.sleep(0.005)


def test_grammar_ends_the_answer_whatever_min_tokens_and_ignore_eos_say(toy: TorchEngine) -> None:
    grammar = made(toy, YES_OR_NO)
    options = {"grammar": grammar, "seed": 3, "min_tokens": 90, "ignore_eos": True}

    ((text, finish),) = answers(toy, asked(toy, "a", **options))

    assert finish == "stop"
    jsonschema.validate(json.loads(text), YES_OR_NO)


def test_end_token_is_allowed_only_where_the_answer_is_complete(codec: TextCodec, grammars: Grammars) -> None:
    matcher = grammars.json_schema({"type": "integer", "minimum": 10, "maximum": 999}).start()
    seen = []
    for digit in "123":
        seen.append(bool(matcher.allowed()[[1, 106]].any()))
        matcher.accept(codec.encode(digit)[0])

    assert seen == [False, False, True]
    assert matcher.finished


@pytest.mark.parametrize("padding", [0, 1, 63])
def test_rows_wider_than_the_vocabulary_are_masked_to_their_end(
    codec: TextCodec, grammars: Grammars, padding: int
) -> None:
    logits = torch.zeros(1, len(codec.pieces()) + padding)
    logits[0, len(codec.pieces()) :] = 50.0
    sampler = Sampler(frozenset({1, 106}))
    request = GenerationRequest(tokens=(2,), sampling=Sampling(max_tokens=9, grammar=grammars.json_object()))
    sequence = Sequence(id=1, request=request, deliver=lambda event: None)

    (choice,) = sampler.pick(logits, [sequence])

    assert isinstance(choice, Choice)
    assert codec.pieces()[choice.token].startswith(b"{")


def test_control_tokens_are_never_allowed(codec: TextCodec, grammars: Grammars) -> None:
    matcher = grammars.json_schema({"type": "string"}).start()
    matcher.accept(codec.encode('"')[0])

    allowed = set(np.flatnonzero(matcher.allowed()).tolist())

    assert len(allowed) > 500
    assert not allowed & codec.control_ids


@pytest.mark.parametrize("word", ["<end_of_turn>", "a▁b", "<unused95>", "肺\U0001fa7b", 'q"\\\n', "a  b"])
def test_fixed_words_come_out_as_text(codec: TextCodec, grammars: Grammars, word: str) -> None:
    matcher = grammars.json_schema({"const": {word: word}}).start()
    pieces, out = codec.pieces(), b""
    while not matcher.finished:
        allowed = np.flatnonzero(matcher.allowed())
        assert not set(allowed.tolist()) & codec.control_ids
        out += pieces[allowed[0]]
        matcher.accept(int(allowed[0]))

    assert json.loads(out) == {word: word}


@pytest.mark.parametrize("blank", ["\n\n", "  ", "\n" + " " * 33, "\t"])
def test_blanks_come_to_an_end(codec: TextCodec, grammars: Grammars, blank: str) -> None:
    single = {piece: i for i, piece in enumerate(codec.pieces()) if len(piece) == 1}
    matcher = grammars.json_schema(YES_OR_NO).start()
    matcher.accept(single[b"{"])

    went = 0
    for sign in blank:
        if not matcher.allowed()[single[sign.encode()]]:
            break
        matcher.accept(single[sign.encode()])
        went += 1

    assert went == len(blank) - 1


def test_two_answers_of_one_grammar_are_apart(codec: TextCodec, grammars: Grammars) -> None:
    grammar = grammars.json_schema(YES_OR_NO)
    first, second = grammar.start(), grammar.start()
    before = second.allowed().copy()

    first.accept(codec.encode("{")[0])

    assert np.array_equal(second.allowed(), before)
    assert not np.array_equal(first.allowed(), before)


def test_schema_is_compiled_once_and_few_are_kept(codec: TextCodec) -> None:
    grammars = new_grammars(codec)

    first = grammars.json_schema(YES_OR_NO)
    assert grammars.json_schema(json.loads(json.dumps(YES_OR_NO))) is first
    for i in range(KEPT):
        grammars.json_schema({"const": i})

    assert grammars.json_schema(YES_OR_NO) is not first
    assert len(grammars._kept) == KEPT


def test_threads_may_compile_at_once(codec: TextCodec) -> None:
    grammars = new_grammars(codec)

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda i: grammars.json_schema({"const": i % 3}), range(24)))

    assert all(isinstance(each, Grammar) for each in done)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def holds_itself() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    return schema


def patterns(count: int) -> list[dict[str, Any]]:
    return [{"type": "string", "pattern": f".*a.{{{i}}}b.*"} for i in range(5, 5 + count)]


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "refers to itself": ({"$ref": "#"}, "cannot be used"),
    "two that refer to each other": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "cannot be used",
    ),
    "allOf that refers to itself": ({"allOf": [{"$ref": "#"}, {"type": "object"}]}, "cannot be used"),
    "remote": ({"$ref": "https://CANARY.example/x.json"}, "another document"),
    "remote, inside": ({"items": {"$ref": "file:///CANARY"}}, "another document"),
    "remote by id": ({"$id": "http://CANARY/x", "$ref": "#/$defs/y"}, "cannot be used"),
    "missing": ({"$ref": "#/$defs/CANARY"}, "cannot be used"),
    "deep": (nested(MAX_DEPTH + 1), "levels deep"),
    "very deep": (nested(20_000), "levels deep"),
    "holds itself": (holds_itself(), "levels deep"),
    "long": ({"enum": [f"{i:0100}" for i in range(700)]}, f"and {MAX_BYTES} are taken"),
    "many": ({"enum": list(range(70_000))}, f"more than {MAX_BYTES}"),
    "long word": ({"const": "x" * 5000}, "characters"),
    "wide": ({"type": "object", "properties": {f"p{i}": {} for i in range(500)}}, "keys"),
    "counted pattern": ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "too costly"),
    "counted pattern, hidden": ({"type": "string", "pattern": r"^([\]a]{9,}(?:b|c{2}){99}){99}$"}, "too costly"),
    "counted property": ({"type": "object", "patternProperties": {"(a{99}){99}": {}}}, "too costly"),
    "patterns that meet": ({"allOf": patterns(20)}, "may be combined"),
    "patterns that meet through references": (
        {"allOf": [{"$ref": f"#/$defs/p{i}"} for i in range(9)],
         "$defs": {f"p{i}": each for i, each in enumerate(patterns(9))}}, "may be combined",
    ),
    "patterns that meet in a chain": (
        {"pattern": "a", "anyOf": [{"pattern": "b", "anyOf": [{"pattern": "c", "anyOf": patterns(3)}]}]},
        "may be combined",
    ),
    "flags that hide": ({"type": "string", "pattern": "(?x)(a{99}) {99}"}, "flags"),
    "look-around": ({"type": "string", "pattern": "^(?=CANARY)b"}, "cannot be used"),
    "back reference": ({"type": "string", "pattern": r"^(CANARY)\1$"}, "cannot be used"),
    "broken pattern": ({"type": "string", "pattern": "(CANARY"}, "cannot be used"),
    "huge count": ({"type": "string", "maxLength": 10**18}, "cannot be used"),
    "product": (
        {"allOf": [{"anyOf": [{"properties": {f"x{i}{j}": {"type": "string"}}} for j in range(4)]}
                   for i in range(9)]}, "cannot be used",
    ),
    "multiple": ({"type": "integer", "multipleOf": 999_983}, "multipleOf"),
    "multiple of many digits": ({"type": "number", "multipleOf": 999.999}, "multipleOf"),
    "multiple of nothing": ({"type": "number", "multipleOf": 0}, "multipleOf"),
    "multiple that is no number": ({"type": "number", "multipleOf": float("nan")}, "multipleOf"),
    "endless multiple": ({"type": "number", "multipleOf": float("inf")}, "multipleOf"),
    "multiples": ({"allOf": [{"type": "integer", "multipleOf": p} for p in (97, 89, 83)]}, "several"),
    "a choice of multiples": (
        {"anyOf": [{"type": "integer", "multipleOf": p} for p in (997, 991, 983, 977, 971, 967)]}, "several",
    ),
    "multiples apart": (
        {"properties": {f"p{i}": {"type": "number", "multipleOf": i / 10} for i in range(1, 40)}}, "several",
    ),
    "contradiction": ({"type": "integer", "minimum": 5, "maximum": 4}, "cannot be used"),
    "nothing": ({"enum": []}, "cannot be used"),
    "unknown type": ({"type": "CANARY"}, "cannot be used"),
    "wrong kind": ({"type": "object", "properties": ["CANARY"]}, "cannot be used"),
    "unsupported": ({"type": "array", "uniqueItems": True, "CANARY": 1}, "uniqueItems is not supported"),
    "ambiguous": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf is not supported"),
    "own options": ({"type": "object", "x-guidance": {"lenient": True}}, "x-guidance"),
    "half a character": ({"type": "object", "properties": {"CANARY\ud800": {}}}, "is not JSON"),
    "not a number": ({"const": float("nan")}, "is not JSON"),
    "key that is none": ({"properties": {1: {}}}, "is not JSON"),
    "value that is none": ({"const": b"CANARY"}, "is not JSON"),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_schema_is_refused(grammars: Grammars, case: str) -> None:
    schema, said = HOSTILE[case]

    with pytest.raises(InputError, match=said) as fault:
        grammars.json_schema(schema)

    assert fault.value.field == FIELD
    assert fault.value.remedy
    assert "CANARY" not in str(fault.value)
    assert "CANARY" not in str(fault.value.__cause__ or "")


COSTLY: dict[str, dict[str, Any]] = {
    "tree": {"$defs": {"n": {"type": "object", "properties": {"c": {"type": "array", "items":
             {"$ref": "#/$defs/n"}}}, "additionalProperties": False}}, "$ref": "#/$defs/n"},
    "without end": {"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]},
    "many items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6, "maxItems": 10**9},
    "long text": {"type": "string", "minLength": 10**5, "maxLength": 10**9},
    "states": {"type": "string", "pattern": "^(.*a.{200}).*b.{100}$"},
    "heaviest": {"type": "string", "pattern": "^(a{40}){50}$"},
    "backtracking": {"type": "string", "pattern": "^(a+)+$"},
    "met": {"allOf": patterns(2)},
    "references": {"$defs": {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(28)}
                   | {"a28": {"type": "object"}}, "$ref": "#/$defs/a0"},
    "choices": {"anyOf": [{"type": "object", "properties": {"k": {"const": i}}} for i in range(500)]},
    "wide": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(400)}},
    "divisible": {"type": "integer", "multipleOf": 997},
}  # fmt: skip


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", COSTLY)
def test_costly_schema_never_hangs_the_engine(toy: TorchEngine, case: str) -> None:
    """It is answered, or it alone is refused on its way; a neighbour goes on."""
    costly = asked(toy, "a", grammar=made(toy, COSTLY[case]), seed=1, max_tokens=60)
    plain = asked(toy, "b", temperature=0.0, max_tokens=30)

    async def run() -> list[Any]:
        return await asyncio.gather(answer(toy, costly), answer(toy, plain), return_exceptions=True)

    first, second = asyncio.run(run())

    assert isinstance(first, tuple | InputError)
    assert isinstance(second, tuple)
    assert toy._sampler.held == 0
    assert toy.stats().held == 0


@pytest.mark.parametrize(
    ("pattern", "weight"),
    [
        ("abc", 3), ("^a$", 1), ("a{3}", 3), ("a{2,5}", 5), ("a{4,}", 4), ("(ab){3}", 6), ("((ab){3}c){2}", 14),
        ("[a-z]{3}", 3), (r"[\]a{9}]{3}", 3), (r"\d{3}-\d{4}", 8), (r"\p{L}{5}", 5), ("(a|bc){2}", 6),
        ("a+b*?", 2), ("a{,7}", 7), ("[^]]{3}", 4),
        ("[]a]{2}", 2), ("a{", 2), (")(", 1), ("(", 0), ("[", 1), ("\\", 1), (r"\p{L", 3),
        ("a{2}{3}", 6), ("{3}", 0), ("a{}", 1), ("a{99999999999999999999}", 99999999999999999999),
    ],
)  # fmt: skip
def test_weight_of_a_pattern_is_its_written_out_length(pattern: str, weight: int) -> None:
    assert _weight(pattern) == weight
