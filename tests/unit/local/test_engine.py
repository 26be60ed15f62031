"""The engine against transformers' own generate, and what happens around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor

from medport.errors import InputError, NotReady, QuotaExceeded, ServerError
from medport.wire.chat import ImagePart, ImageUrl, Message, TextPart
from medport_local.engine.engine import TorchEngine
from medport_local.engine.grammar import Matcher
from medport_local.engine.loading import load_gemma
from medport_local.engine.schema import refused
from medport_local.engine.sequence import Event, GenerationRequest, Sampling
from medport_local.snapshot import open_snapshot

NewEngine = Callable[..., TorchEngine]
QUESTION = "describe the image"
LONG = "the lungs are clear and the heart is normal. " * 4


def chat(text: str, images: int = 0) -> list[Message]:
    parts = [ImagePart(image_url=ImageUrl(url="data:,")) for _ in range(images)]
    return [Message(role="user", content=[*parts, TextPart(text=text)])]


def request(
    engine: TorchEngine, text: str, images: list[np.ndarray] | None = None, **sampling: object
) -> GenerationRequest:
    assert engine.images is not None
    options: dict[str, object] = {"max_tokens": 24, **sampling}
    return GenerationRequest(
        tokens=engine.prompts.build(chat(text, len(images or []))),
        images=tuple(engine.images.pixel_values(rgb) for rgb in images or []),
        sampling=Sampling(**options),  # type: ignore[arg-type]
    )


async def text_of(engine: TorchEngine, asked: GenerationRequest) -> tuple[str, str | None, int]:
    text, finish, count = "", None, 0
    async for event in engine.submit(asked):
        text, finish, count = text + event.text, event.finish_reason, event.completion_tokens
    return text, finish, count


class Oracle:
    """transformers, used as its documentation says."""

    def __init__(self, folder: Path) -> None:
        self.processor = Gemma3Processor.from_pretrained(folder, backend="pil")
        self.model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def inputs(self, text: str, images: list[np.ndarray]) -> dict[str, torch.Tensor]:
        content = [*({"type": "image", "image": rgb} for rgb in images), {"type": "text", "text": text}]
        inputs: dict[str, torch.Tensor] = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        )  # fmt: skip
        return inputs

    def generate(self, text: str, images: list[np.ndarray], max_tokens: int) -> list[int]:
        inputs = self.inputs(text, images)
        with torch.inference_mode():
            ids = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        tokens: list[int] = ids[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens


@pytest.fixture(scope="module")
def oracle(gemma_folder: Path) -> Oracle:
    return Oracle(gemma_folder)


@pytest.mark.parametrize(("text", "images"), [(QUESTION, 0), (QUESTION, 1), (QUESTION, 3), (LONG, 0), (LONG, 2)])
def test_prompt_is_the_processors(
    new_engine: NewEngine, oracle: Oracle, drawings: list, text: str, images: int
) -> None:
    engine = new_engine()

    made = request(engine, text, drawings[:images])

    expected = oracle.inputs(text, drawings[:images])
    assert list(made.tokens) == expected["input_ids"][0].tolist()
    if images:
        assert np.array_equal(np.stack(made.images), expected["pixel_values"].numpy())


async def tokens_of(engine: TorchEngine, asked: GenerationRequest) -> list[int]:
    """The ids themselves, taken where the sampler hands them on."""
    handle = engine.submit(asked)
    sequence = engine._alive[handle.id]
    async for _ in handle:
        pass
    return sequence.generated


def test_greedy_tokens_equal_generate_alone_and_together(
    new_engine: NewEngine, oracle: Oracle, drawings: list
) -> None:
    engine = new_engine(max_running=4)
    cases = [(QUESTION, 0), (QUESTION, 1), (QUESTION, 3), (LONG, 0), (LONG, 2), ("hello", 0)]
    expected = [oracle.generate(text, drawings[:n], 48) for text, n in cases]
    asked = [request(engine, text, drawings[:n], max_tokens=48) for text, n in cases]
    assert max(len(each.tokens) for each in asked) > 32 * 2, "some prompt must be longer than the window"
    assert len({tuple(tokens) for tokens in expected}) == len(cases), "the toy must tell the prompts apart"

    async def together() -> list[list[int]]:
        return list(await asyncio.gather(*(tokens_of(engine, each) for each in asked)))

    assert asyncio.run(together()) == expected
    assert asyncio.run(tokens_of(engine, asked[2])) == expected[2]
    assert engine.stats().held == 0


def test_text_only_model_generates_as_transformers_does(text_gemma_folder: Path) -> None:
    from transformers import Gemma3ForCausalLM, GemmaTokenizer

    snapshot = open_snapshot(text_gemma_folder)
    engine = TorchEngine(load_gemma(snapshot), snapshot)
    tokens = engine.prompts.build(chat(LONG))
    model = Gemma3ForCausalLM.from_pretrained(text_gemma_folder, dtype=torch.float32)
    tokenizer = GemmaTokenizer.from_pretrained(text_gemma_folder)

    generated = asyncio.run(tokens_of(engine, GenerationRequest(tokens=tokens, sampling=Sampling(max_tokens=24))))

    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": LONG}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert list(tokens) == ids["input_ids"][0].tolist()
    assert generated == model.generate(**ids, max_new_tokens=24, do_sample=False)[0, len(tokens) :].tolist()
    engine.close()


def test_same_seed_gives_the_same_text_whatever_else_runs(new_engine: NewEngine) -> None:
    engine = new_engine()
    seeded = request(engine, QUESTION, temperature=1.0, top_p=0.95, seed=7)
    others = [request(engine, LONG, temperature=1.5, seed=i) for i in range(5)]

    async def crowded() -> str:
        first, *_ = await asyncio.gather(text_of(engine, seeded), *(text_of(engine, each) for each in others))
        return first[0]

    alone = asyncio.run(text_of(engine, seeded))[0]
    assert asyncio.run(crowded()) == alone
    unseeded = request(engine, QUESTION, temperature=1.0)
    assert len({asyncio.run(text_of(engine, unseeded))[0] for _ in range(3)}) > 1


def test_stream_is_the_decoded_whole_and_counts_tokens(new_engine: NewEngine) -> None:
    engine = new_engine()
    asked = request(engine, LONG, max_tokens=60)

    generated = asyncio.run(tokens_of(engine, asked))
    text, finish, count = asyncio.run(text_of(engine, asked))

    assert count == len(generated)
    assert finish == ("length" if count == 60 else "stop")
    assert "�" in text or text == load_gemma_text(engine, generated)


def load_gemma_text(engine: TorchEngine, ids: list[int]) -> str:
    return b"".join(engine._pieces[i] for i in ids).decode("utf-8", "replace")


def test_stop_string_ends_the_text_before_itself(new_engine: NewEngine) -> None:
    engine = new_engine()
    whole = asyncio.run(text_of(engine, request(engine, QUESTION, max_tokens=40)))[0]
    word = whole[5:8]

    text, finish, _ = asyncio.run(text_of(engine, request(engine, QUESTION, max_tokens=40, stop=(word,))))

    assert text == whole[: whole.index(word)]
    assert finish == "stop"


async def events_of(engine: TorchEngine, asked: GenerationRequest) -> list[Event]:
    return [event async for event in engine.submit(asked)]


def test_logprobs_equal_transformers_on_the_same_tokens(
    new_engine: NewEngine, oracle: Oracle, drawings: list
) -> None:
    engine = new_engine()
    plain = request(engine, LONG, drawings[:1], max_tokens=20, ignore_eos=True)
    options = {"temperature": 1.2, "seed": 5, "repetition_penalty": 1.3, "logprobs": 4, "ignore_eos": True}
    asked = request(engine, LONG, drawings[:1], max_tokens=20, **options)

    events = asyncio.run(events_of(engine, asked))

    told = [token for event in events for token in event.tokens]
    assert [len(event.tokens) for event in events] == [1] * 20
    inputs = oracle.inputs(LONG, drawings[:1])
    answer = torch.tensor([[each.token for each in told]])
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["token_type_ids"] = torch.nn.functional.pad(inputs["token_type_ids"], (0, 20))
    with torch.inference_mode():
        logits = oracle.model(**inputs).logits[0, length - 1 : -1]
    expected = logits.double().log_softmax(-1)
    for each, row in zip(told, expected, strict=True):
        values, tokens = row.topk(4)
        assert each.logprob == pytest.approx(float(row[each.token]), abs=1e-5)
        assert [value for *_, value in each.top] == pytest.approx(values.tolist(), abs=1e-5)
        assert [token for token, *_ in each.top] == tokens.tolist()
    assert not any(event.tokens for event in asyncio.run(events_of(engine, plain)))


def test_pieces_of_the_logprobs_are_the_text(new_engine: NewEngine) -> None:
    engine = new_engine()
    asked = request(engine, LONG, max_tokens=60, temperature=1.0, seed=2, logprobs=2)

    events = asyncio.run(events_of(engine, asked))

    told = [token for event in events for token in event.tokens]
    text = "".join(event.text for event in events)
    assert b"".join(each.piece for each in told).decode("utf-8", "replace") == text
    # An end token is counted and not told.
    assert len(told) == events[-1].completion_tokens - (events[-1].finish_reason == "stop")
    pieces = engine._pieces
    assert all(piece == pieces[token] for each in told for token, piece, _ in each.top)


def test_ignored_end_token_does_not_end(new_engine: NewEngine) -> None:
    engine = new_engine()
    ends = {"logit_bias": ((1, 100.0),), "max_tokens": 30}

    ended = asyncio.run(text_of(engine, request(engine, QUESTION, **ends)))
    ignored = asyncio.run(text_of(engine, request(engine, QUESTION, ignore_eos=True, **ends)))
    shown = asyncio.run(
        text_of(engine, request(engine, QUESTION, ignore_eos=True, skip_special_tokens=False, **ends))
    )

    assert ended == ("", "stop", 1)
    assert ignored == ("", "length", 30)
    assert shown == ("<eos>" * 30, "length", 30)


def test_min_tokens_holds_back_end_tokens_and_stop_strings(new_engine: NewEngine) -> None:
    engine = new_engine()
    whole = asyncio.run(text_of(engine, request(engine, QUESTION, max_tokens=40)))[0]
    options = {"max_tokens": 40, "stop": (whole[0],)}

    at_once = asyncio.run(text_of(engine, request(engine, QUESTION, **options)))
    later = asyncio.run(text_of(engine, request(engine, QUESTION, min_tokens=10, **options)))
    biased = asyncio.run(
        text_of(engine, request(engine, QUESTION, min_tokens=10, logit_bias=((106, 100.0),), max_tokens=40))
    )

    assert at_once[:2] == ("", "stop")
    assert later[2] > 10
    assert later[0].startswith(whole[0])
    assert biased[1:] == ("stop", 11)


def test_stop_token_ends_and_its_text_can_stay(new_engine: NewEngine) -> None:
    engine = new_engine()
    tokens = asyncio.run(tokens_of(engine, request(engine, QUESTION, max_tokens=12)))
    last = next(t for i, t in enumerate(tokens) if i >= 4 and t not in tokens[:i] and t in range(115, 500))
    count = tokens.index(last) + 1
    options = {"stop_token_ids": (last,), "max_tokens": 12, "logprobs": 0}

    without = asyncio.run(events_of(engine, request(engine, QUESTION, **options)))
    with_it = asyncio.run(events_of(engine, request(engine, QUESTION, include_stop=True, **options)))

    assert [len(without), len(with_it)] == [count, count]
    assert without[-1].finish_reason == with_it[-1].finish_reason == "stop"
    assert without[-1].tokens == ()
    assert [each.token for each in with_it[-1].tokens] == [last]


def test_options_together_are_reproducible(new_engine: NewEngine) -> None:
    engine = new_engine()
    options = {
        "temperature": 1.1, "top_p": 0.95, "top_k": 50, "min_p": 0.001, "presence_penalty": 0.5, "logprobs": 3,
        "frequency_penalty": 0.2, "repetition_penalty": 1.1, "logit_bias": ((150, 1.0),), "min_tokens": 5,
    }  # fmt: skip
    seeded = request(engine, QUESTION, seed=7, **options)
    others = [request(engine, LONG, seed=i, **options) for i in range(4)]

    async def crowded() -> list[list[Event]]:
        return list(await asyncio.gather(*(events_of(engine, each) for each in (seeded, *others))))

    alone = asyncio.run(events_of(engine, seeded))
    beside = asyncio.run(crowded())[0]

    assert [(e.text, e.finish_reason, [t.token for t in e.tokens]) for e in alone] == [
        (e.text, e.finish_reason, [t.token for t in e.tokens]) for e in beside
    ]


def test_refused_choice_fails_its_request_alone(new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine()
    assert engine.grammars is not None
    grammar = engine.grammars.json_object()
    monkeypatch.setattr(Matcher, "_check", _too_complex)

    async def both() -> list[object]:
        grammatical = request(engine, QUESTION, grammar=grammar)
        return await asyncio.gather(
            text_of(engine, grammatical), text_of(engine, request(engine, QUESTION)), return_exceptions=True
        )

    refused_one, answered = asyncio.run(both())

    assert isinstance(refused_one, InputError)
    assert isinstance(answered, tuple)
    assert (engine.stats().failed, engine.stats().finished, engine.stats().held) == (1, 1, 0)


def _too_complex(matcher: Matcher) -> None:
    raise refused("became too complex", "simplify it")


def test_engine_says_what_it_can(new_engine: NewEngine) -> None:
    able = new_engine().capabilities

    assert (able.images, able.seeds, able.logprobs, able.grammar) == (True, True, True, True)


def test_cancelled_request_frees_its_memory_at_the_next_step(new_engine: NewEngine) -> None:
    engine = new_engine()

    async def leave_early() -> None:
        handle = engine.submit(request(engine, LONG, max_tokens=400))
        async for _ in handle:
            engine.cancel(handle.id)
            break

    asyncio.run(leave_early())

    until(lambda: engine.stats().held == 0)
    stats = engine.stats()
    assert (stats.cancelled, stats.running, stats.queued) == (1, 0, 0)
    assert stats.tokens_generated < 100


def test_waiting_request_can_be_cancelled_too(new_engine: NewEngine) -> None:
    engine = new_engine(max_running=1)

    async def run() -> None:
        first = engine.submit(request(engine, LONG, max_tokens=50))
        second = engine.submit(request(engine, LONG, max_tokens=50))
        engine.cancel(second.id)
        async for _ in first:
            pass

    asyncio.run(run())

    until(lambda: engine.stats().cancelled == 1)
    assert engine.stats().finished == 1


def test_full_queue_is_refused_with_a_time_to_wait(new_engine: NewEngine) -> None:
    engine = new_engine(max_running=1, max_queue=2)

    async def crowd() -> None:
        handles = []
        try:
            for _ in range(5):
                handles.append(engine.submit(request(engine, LONG, max_tokens=300)))
        finally:
            for handle in handles:
                engine.cancel(handle.id)

    with pytest.raises(QuotaExceeded) as refused:
        asyncio.run(crowd())
    assert refused.value.retry_after_s is not None
    assert 1 <= refused.value.retry_after_s <= 60


def test_step_that_fails_fails_its_requests_and_no_others(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = new_engine()

    def broken(batch: object) -> None:
        raise RuntimeError("CANARY")

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "run", broken)
        with pytest.raises(ServerError):
            asyncio.run(text_of(engine, request(engine, QUESTION)))

    assert asyncio.run(text_of(engine, request(engine, QUESTION)))[2] > 0
    assert (engine.stats().failed, engine.stats().finished) == (1, 1)
    assert "RuntimeError" in caplog.text
    assert "CANARY" not in caplog.text


def test_closing_drains_then_refuses(new_engine: NewEngine) -> None:
    engine = new_engine()

    async def run() -> tuple[str, str | None, int]:
        task = asyncio.create_task(text_of(engine, request(engine, QUESTION, max_tokens=20)))
        await asyncio.sleep(0)
        await asyncio.to_thread(engine.close, 30.0)
        with pytest.raises(NotReady):
            engine.submit(request(engine, QUESTION))
        return await task

    assert asyncio.run(run())[1] is not None


def test_closing_without_patience_tells_those_that_wait(new_engine: NewEngine) -> None:
    engine = new_engine()

    async def run() -> None:
        task = asyncio.create_task(text_of(engine, request(engine, LONG, max_tokens=400)))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.close)
        with pytest.raises(NotReady):
            await task

    asyncio.run(run())
    assert engine.stats().held == 0


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)
