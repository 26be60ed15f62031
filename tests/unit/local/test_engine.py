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

from medport.errors import NotReady, QuotaExceeded, ServerError
from medport.wire.chat import ImagePart, ImageUrl, Message, TextPart
from medport_local.engine.engine import TorchEngine
from medport_local.engine.loading import load_gemma
from medport_local.engine.sequence import GenerationRequest, Sampling
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
    return engine._runner._gemma.text.decode(ids)


def test_stop_string_ends_the_text_before_itself(new_engine: NewEngine) -> None:
    engine = new_engine()
    whole = asyncio.run(text_of(engine, request(engine, QUESTION, max_tokens=40)))[0]
    word = whole[5:8]

    text, finish, _ = asyncio.run(text_of(engine, request(engine, QUESTION, max_tokens=40, stop=(word,))))

    assert text == whole[: whole.index(word)]
    assert finish == "stop"


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
        patch.setattr(engine._runner, "forward", broken)
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
