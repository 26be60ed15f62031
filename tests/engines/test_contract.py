"""What serving may expect of any engine: right tokens, honest events, nothing left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medport.errors import InputError, NotReady, QuotaExceeded, Timeout
from medport.wire.chat import ImagePart, ImageUrl, Message, TextPart
from medport_local.engine.engine import Engine, EngineLimits
from medport_local.engine.reference import Reference
from medport_local.engine.sequence import Event, GenerationRequest, Sampling
from medport_local.phantom.draw import render, sample

from .conftest import Profile

QUESTION = "Describe this X-ray."
LONG = "Compare the images and say which of them shows a fracture, and on which side it is. " * 6


def request(engine: Engine, text: str = QUESTION, images: int = 0, **options: Any) -> GenerationRequest:
    parts = [ImagePart(image_url=ImageUrl(url="data:,")) for _ in range(images)]
    tokens = engine.prompts.build([Message(role="user", content=[*parts, TextPart(text=text)])])
    codec = engine.images
    pictures = []
    for i in range(images):
        assert codec is not None
        pictures.append(codec.pixel_values(np.asarray(drawing(i))))
    about = {name: options.pop(name) for name in ("tenant", "group", "deadline") if name in options}
    sampling = Sampling(**{"max_tokens": 24, "ignore_eos": True, "logprobs": 0, **options})
    return GenerationRequest(tokens=tokens, images=tuple(pictures), sampling=sampling, **about)


def drawing(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.repeat(render(sample(rng), rng).pixels[..., None], 3, axis=2)


async def events_of(engine: Engine, asked: GenerationRequest) -> list[Event]:
    return [event async for event in engine.submit(asked)]


async def all_of(engine: Engine, asked: Sequence[GenerationRequest]) -> list[list[Event]]:
    return list(await asyncio.gather(*(events_of(engine, each) for each in asked)))


def tokens(events: Sequence[Event]) -> list[int]:
    return [each.token for event in events for each in event.tokens]


def text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events)


CASES = {"text": (QUESTION, 0), "image": (QUESTION, 1), "three images": (LONG, 3), "past the window": (LONG, 0)}


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_transformers(profile: Profile, case: str) -> None:
    asked = request(profile.engine, *CASES[case])
    assert case != "past the window" or len(asked.tokens) > 128

    events = asyncio.run(events_of(profile.engine, asked))

    assert tokens(events) == Reference(profile.gemma, asked).greedy(24)


def test_eight_at_once_get_what_each_gets_alone(profile: Profile) -> None:
    asked = [request(profile.engine, QUESTION + " " * (i % 2) + "!" * i, i % 4) for i in range(8)]

    together = asyncio.run(all_of(profile.engine, asked))

    assert [tokens(events) for events in together] == [Reference(profile.gemma, each).greedy(24) for each in asked]


def test_logprobs_are_those_of_the_models_own_logits(profile: Profile) -> None:
    asked = request(profile.engine, QUESTION, 1, logprobs=3, temperature=0.9, seed=4, max_tokens=10)

    events = asyncio.run(events_of(profile.engine, asked))

    reference = Reference(profile.gemma, asked)
    row = reference.prefill()
    for event in events:
        (told,) = event.tokens
        expected = row.double().log_softmax(-1)
        assert told.logprob == pytest.approx(float(expected[told.token]), abs=1e-4)
        assert [value for *_, value in told.top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)
        row = reference.decode(told.token)


def test_events_count_up_and_the_last_one_says_why(engine: Engine) -> None:
    events = asyncio.run(events_of(engine, request(engine, max_tokens=9)))

    assert [event.completion_tokens for event in events] == list(range(1, 10))
    assert [event.finish_reason for event in events] == [None] * 8 + ["length"]


def test_end_token_ends_the_answer(engine: Engine) -> None:
    events = asyncio.run(events_of(engine, request(engine, QUESTION, 1, ignore_eos=False, max_tokens=100)))

    assert events[-1].finish_reason == "stop"
    assert len(events) < 100
    assert text(events)


def test_stop_string_and_stop_token_end_the_answer(engine: Engine) -> None:
    whole = asyncio.run(events_of(engine, request(engine, QUESTION, 1)))
    answer, third = text(whole), tokens(whole)[2]

    by_text = asyncio.run(events_of(engine, request(engine, QUESTION, 1, stop=(answer[6:9],))))
    by_token = asyncio.run(events_of(engine, request(engine, QUESTION, 1, stop_token_ids=(third,))))

    assert text(by_text) == answer[: answer.index(answer[6:9])]
    assert by_text[-1].finish_reason == by_token[-1].finish_reason == "stop"
    assert len(by_token) == tokens(whole).index(third) + 1


def test_seed_decides_whatever_else_runs(engine: Engine) -> None:
    seeded = request(engine, temperature=1.3, top_p=0.95, top_k=50, seed=11)
    others = [request(engine, LONG, temperature=1.5, seed=i) for i in range(6)]

    alone = asyncio.run(events_of(engine, seeded))
    crowded = asyncio.run(all_of(engine, [seeded, *others]))[0]
    other_seed = asyncio.run(events_of(engine, replace(seeded, sampling=replace(seeded.sampling, seed=12))))

    assert tokens(alone) == tokens(crowded)
    assert tokens(alone) != tokens(other_seed)


def test_answers_of_one_group_are_those_of_requests_apart(engine: Engine) -> None:
    apart = [request(engine, LONG, 2, temperature=1.0, seed=i) for i in range(3)]

    grouped = asyncio.run(all_of(engine, [replace(each, group="a group") for each in apart]))

    assert [tokens(e) for e in grouped] == [tokens(asyncio.run(events_of(engine, each))) for each in apart]


def test_same_prompt_again_gets_the_same_tokens(engine: Engine) -> None:
    asked = request(engine, QUESTION, 2)
    longer = request(engine, QUESTION + " And the heart?", 2)

    first = asyncio.run(events_of(engine, asked))
    again = asyncio.run(events_of(engine, asked))
    other = asyncio.run(events_of(engine, longer))
    other_tenant = asyncio.run(events_of(engine, replace(asked, tenant="another")))

    assert tokens(first) == tokens(again) == tokens(other_tenant)
    assert len(tokens(other)) == 24


def test_cancelled_request_leaves_nothing(engine: Engine) -> None:
    before = engine.stats()

    async def leave_early() -> None:
        handle = engine.submit(request(engine, LONG, 1, max_tokens=500))
        async for _ in handle:
            break
        waiting = engine.submit(request(engine, LONG, 1, max_tokens=500))
        engine.cancel(waiting.id)
        engine.cancel(handle.id)

    asyncio.run(leave_early())

    until(lambda: engine.stats().held == engine.stats().running == engine.stats().queued == 0)
    after = engine.stats()
    assert after.cancelled - before.cancelled == 2
    assert after.kv_bytes_used == 0


def test_deadline_ends_a_request_that_runs_and_one_that_waits(profile: Profile) -> None:
    engine = profile.remake(EngineLimits(max_running=1))
    late = time.monotonic() + 0.15

    async def ask() -> list[object]:
        asked = [request(engine, LONG, max_tokens=900, deadline=late) for _ in range(2)]
        return await asyncio.gather(*(events_of(engine, each) for each in asked), return_exceptions=True)

    ended = asyncio.run(ask())

    assert [type(each) for each in ended] == [Timeout, Timeout]
    assert (engine.stats().expired, engine.stats().held) == (2, 0)
    engine.close()


def test_full_queue_says_when_to_come_back(profile: Profile) -> None:
    engine = profile.remake(EngineLimits(max_running=1, max_queue=2))

    async def crowd() -> None:
        handles = [engine.submit(request(engine, LONG, max_tokens=200))]
        try:
            for _ in range(8):
                handles.append(engine.submit(request(engine, LONG, max_tokens=200)))
        finally:
            for handle in handles:
                engine.cancel(handle.id)

    with pytest.raises(QuotaExceeded) as refused:
        asyncio.run(crowd())
    engine.close()
    assert refused.value.retry_after_s is not None
    assert 1 <= refused.value.retry_after_s <= 60


def test_request_that_never_fits_is_refused_at_once(profile: Profile) -> None:
    engine = profile.remake(EngineLimits(kv_bytes=1_400_000, max_running=1))

    async def ask() -> None:
        engine.submit(request(engine, LONG, max_tokens=1500))

    with pytest.raises(InputError, match="max_tokens") as refused:
        asyncio.run(ask())
    engine.close()
    assert refused.value.remedy is not None


def test_closed_engine_takes_nothing(profile: Profile) -> None:
    engine = profile.remake(EngineLimits())
    engine.close()

    async def ask() -> None:
        engine.submit(request(engine))

    with pytest.raises(NotReady):
        asyncio.run(ask())
    assert not engine.healthy


def test_capabilities_say_what_there_is(profile: Profile) -> None:
    able = profile.engine.capabilities

    assert able.images == (profile.engine.images is not None)
    assert able.seeds
    assert able.logprobs


def test_threads_of_the_host_stay_as_they_are(profile: Profile) -> None:
    before = torch.get_num_threads()

    engine = profile.remake(EngineLimits())
    asyncio.run(events_of(engine, request(engine, max_tokens=2)))
    engine.close()

    assert torch.get_num_threads() == before


def until(true: Any) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
