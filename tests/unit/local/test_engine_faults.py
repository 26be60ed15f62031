"""What goes wrong in one request stays there; what is kept of a request is what was asked for."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from medport.errors import ConfigError, InputError, ServerError
from medport.wire.chat import ImagePart, ImageUrl, Message, TextPart
from medport_local.engine.engine import TorchEngine
from medport_local.engine.scheduler import Batch
from medport_local.engine.sequence import Event, GenerationRequest, Sampling

NewEngine = Callable[..., TorchEngine]
LONG = "the lungs are clear and the heart is normal. " * 4
KEPT = 8 * 2**20


def request(
    engine: TorchEngine, text: str, images: Sequence[np.ndarray] = (), *, about: dict[str, Any] | None = None,
    **sampling: Any,
) -> GenerationRequest:  # fmt: skip
    assert engine.images is not None
    parts = [ImagePart(image_url=ImageUrl(url="data:,")) for _ in images]
    return GenerationRequest(
        tokens=engine.prompts.build([Message(role="user", content=[*parts, TextPart(text=text)])]),
        images=tuple(engine.images.pixel_values(rgb) for rgb in images),
        sampling=Sampling(**{"max_tokens": 16, "ignore_eos": True, "logprobs": 0, **sampling}),
        **(about or {}),
    )


async def tokens_of(engine: TorchEngine, asked: GenerationRequest) -> list[int]:
    events: list[Event] = [event async for event in engine.submit(asked)]
    return [each.token for event in events for each in event.tokens]


def ask(engine: TorchEngine, *asked: GenerationRequest) -> list[Any]:
    async def all_of() -> list[Any]:
        return list(await asyncio.gather(*(tokens_of(engine, each) for each in asked), return_exceptions=True))

    return asyncio.run(all_of())


def test_poisoned_request_fails_alone(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = new_engine()
    asked = [request(engine, f"question {i}") for i in range(4)]
    alone = [ask(engine, each)[0] for each in asked]
    run = engine._runner.run

    def poisoned(batch: Batch) -> torch.Tensor | None:
        if batch.phase == "decode" and any(
            each.request is asked[1] and len(each.generated) == 5 for each in batch.sequences
        ):
            raise RuntimeError("CANARY")
        return run(batch)

    monkeypatch.setattr(engine._runner, "run", poisoned)
    ended = ask(engine, *asked)

    assert isinstance(ended[1], ServerError)
    assert [ended[0], *ended[2:]] == [alone[0], *alone[2:]]
    assert (engine.stats().failed, engine.stats().held) == (1, 0)
    assert "CANARY" not in caplog.text


def test_numbers_that_are_none_fail_their_request_alone(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    asked = [request(engine, f"question {i}") for i in range(3)]
    alone = [ask(engine, each)[0] for each in asked]
    step = engine._runner._cache.step

    def spoiled(leases: Any, positions: Any) -> Any:
        attend = step(leases, positions)

        def spoil(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            for i, position in enumerate(positions):
                if position == len(asked[2].tokens) + 3 and leases[i].slot == 2:
                    k[i], v[i] = float("nan"), float("nan")
            return attend(layer, q, k, v)

        return spoil

    monkeypatch.setattr(engine._runner._cache, "step", spoiled)
    ended = ask(engine, *asked)
    monkeypatch.setattr(engine._runner._cache, "step", step)

    assert isinstance(ended[2], ServerError)
    assert ended[:2] == alone[:2]
    assert ask(engine, *asked) == alone, "whoever gets the place next must not see what was left there"


def test_device_out_of_memory_fails_the_request_and_not_the_engine(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    asked = request(engine, LONG)
    expected = ask(engine, asked)

    def full(batch: Batch) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "run", full)
        (failed,) = ask(engine, asked)

    assert isinstance(failed, ServerError)
    assert ask(engine, asked) == expected
    assert engine.healthy


def test_restoring_that_fails_costs_time_only(new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine(reuse_bytes=KEPT)
    asked = request(engine, LONG)
    expected = ask(engine, asked)

    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(engine._runner._cache, "restore", broken)

    assert ask(engine, asked) == expected


def test_answers_of_one_request_prefill_once(new_engine: NewEngine, drawings: list[np.ndarray]) -> None:
    engine = new_engine()
    asked = [request(engine, LONG, drawings[:2], about={"group": "g"}, temperature=1.0, seed=i) for i in range(4)]
    apart = [request(engine, LONG, drawings[:2], temperature=1.0, seed=i) for i in range(4)]
    expected = [ask(engine, each)[0] for each in apart]
    before = engine.stats().prompt_tokens

    answers = ask(engine, *asked)

    assert answers == expected
    assert engine.stats().prompt_tokens - before == len(asked[0].tokens)
    assert engine.stats().cache_hits == 3 * len(asked[0].tokens)
    assert engine.stats().reuse_bytes_used == 0, "a group is over with its last answer"


def test_second_question_about_an_image_computes_the_question_alone(
    new_engine: NewEngine, drawings: list[np.ndarray]
) -> None:
    engine, plain = new_engine(reuse_bytes=KEPT), new_engine()
    first = request(engine, "what is shown?", drawings[:1])
    second = request(engine, "where is it?", drawings[:1])
    other = request(engine, "where is it?", drawings[1:2])
    ask(engine, first)
    before = engine.stats()

    answer = ask(engine, second)
    after = engine.stats()

    end = max(i for i, token in enumerate(second.tokens) if token == engine._image_token_id) + 1
    assert answer == ask(plain, second)
    assert after.cache_hits - before.cache_hits >= end
    assert after.prompt_tokens - before.prompt_tokens <= len(second.tokens) - end
    assert ask(engine, other) == ask(plain, other), "another image is another prompt"


def test_image_in_another_prompt_is_not_encoded_again(new_engine: NewEngine, drawings: list[np.ndarray]) -> None:
    engine, plain = new_engine(reuse_bytes=KEPT), new_engine()
    two, swapped = (request(engine, "compare", [drawings[i] for i in order]) for order in ((0, 1), (1, 0)))
    ask(engine, two)

    answer = ask(engine, swapped)

    assert answer == ask(plain, swapped)
    assert (engine.stats().image_hits, engine.stats().image_misses) == (2, 2)


def test_tenants_never_share(new_engine: NewEngine, drawings: list[np.ndarray]) -> None:
    engine = new_engine(reuse_bytes=KEPT)
    mine = request(engine, LONG, drawings[:1], about={"tenant": "mine"})
    yours = request(engine, LONG, drawings[:1], about={"tenant": "yours"})
    ask(engine, mine)

    answers = ask(engine, yours)
    stats = engine.stats()
    again = ask(engine, mine)

    assert answers == again
    assert (stats.cache_hits, stats.image_hits) == (0, 0)
    assert engine.stats().cache_hits == len(mine.tokens)


def test_nothing_of_a_request_is_kept_unless_asked_for(new_engine: NewEngine, drawings: list[np.ndarray]) -> None:
    engine = new_engine()
    asked = request(engine, LONG, drawings[:1])
    pixels = weakref.ref(asked.images[0])
    ask(engine, asked)
    del asked
    # One more, so that no local of the engine's loop is left from the first.
    ask(engine, request(engine, "another"))
    gc.collect()

    assert pixels() is None
    assert engine.stats().reuse_bytes_used == 0
    assert not engine.capabilities.prefix_cache


def test_kept_work_stays_within_its_bytes(new_engine: NewEngine, drawings: list[np.ndarray]) -> None:
    engine, plain = new_engine(reuse_bytes=60_000), new_engine()
    asked = [request(engine, f"{i} {LONG}", drawings[i % 4 : i % 4 + 1]) for i in range(6)]

    answers = ask(engine, *asked)

    assert answers == ask(plain, *asked)
    assert 0 < engine.stats().reuse_bytes_used <= 60_000


def test_memory_that_holds_no_request_is_refused_at_start(new_engine: NewEngine) -> None:
    with pytest.raises(ConfigError, match="kv_bytes"):
        new_engine(kv_bytes=1000)


def test_unknown_adapter_is_refused(new_engine: NewEngine) -> None:
    engine = new_engine()

    (refused,) = ask(engine, request(engine, "x", about={"adapter": "nowhere"}))

    assert isinstance(refused, InputError)


def test_long_prompt_does_not_stop_the_others(new_engine: NewEngine) -> None:
    engine = new_engine(stall_ms=0.01)
    talking, long = request(engine, "hello", max_tokens=60), request(engine, LONG * 2, max_tokens=2)
    seen: list[str] = []

    async def run() -> None:
        async def note(name: str, asked: GenerationRequest) -> None:
            async for _ in engine.submit(asked):
                seen.append(name)

        first = asyncio.create_task(note("talking", talking))
        while len(seen) < 3:
            await asyncio.sleep(0)
        await asyncio.gather(first, note("long", long))

    asyncio.run(run())

    assert "talking" in seen[3 : seen.index("long")], "tokens come while the prompt is computed"
