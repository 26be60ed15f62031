"""vLLM behind the protocol writes what the reference writes, and its text is cut as ours is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from medport.errors import InputError, QuotaExceeded, Timeout
from medport_local.engine import vllm_gate
from medport_local.engine.loading import Gemma
from medport_local.engine.reference import Reference
from medport_local.engine.scoring import Scorer
from medport_local.engine.sequence import Event, GenerationRequest, Sampling
from medport_local.engine.vllm_engine import VllmEngine
from medport_local.engine.vllm_opening import place_of
from medport_local.snapshot import Snapshot

SENTENCE = "The heart is of normal size, the lungs are clear, and there is no effusion on either side. "
PROMPTS = ("The capital of France is", "1, 2, 3, 4,", "肺炎的常见症状包括", SENTENCE * 40 + "In summary,")
WINDOW = 512


def request(engine: VllmEngine, text: str, tenant: str = "", deadline: float | None = None, **sampling: object):
    options: dict[str, object] = {"max_tokens": 24, **sampling}
    return GenerationRequest(
        tokens=engine.prompts.raw(text, 0), sampling=Sampling(**options), tenant=tenant, deadline=deadline
    )


async def events_of(engine: VllmEngine, asked: GenerationRequest) -> list[Event]:
    return [event async for event in engine.submit(asked)]


async def together(engine: VllmEngine, asked: list[GenerationRequest]) -> list[list[Event]]:
    return list(await asyncio.gather(*(events_of(engine, each) for each in asked)))


def tokens_of(events: list[Event]) -> list[int]:
    return [token.token for event in events for token in event.tokens]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)


def test_greedy_tokens_are_the_references_alone_and_together(engine: VllmEngine, gemma: Gemma) -> None:
    asked = [request(engine, text, ignore_eos=True, logprobs=0) for text in PROMPTS]
    assert len(asked[-1].tokens) > WINDOW + 100

    alone = [tokens_of(asyncio.run(events_of(engine, each))) for each in asked]
    beside = [tokens_of(events) for events in asyncio.run(together(engine, asked))]

    expected = [Reference(gemma, each).greedy(24) for each in asked]
    assert alone == expected
    assert beside == expected


def test_text_is_what_the_tokens_say_and_each_token_has_an_event(engine: VllmEngine, gemma: Gemma) -> None:
    events = asyncio.run(events_of(engine, request(engine, PROMPTS[2], ignore_eos=True, logprobs=0)))

    assert [event.completion_tokens for event in events] == list(range(1, 25))
    assert [event.finish_reason for event in events] == [None] * 23 + ["length"]
    assert text_of(events) == gemma.text.decode(tokens_of(events))


def test_gate_passes_text_with_logprobs_within_a_thousandth(
    engine: VllmEngine, reference: Scorer, snapshot: Snapshot
) -> None:
    report = vllm_gate.verify_text(engine, reference, snapshot, place_of(engine.limits, "float32"))

    assert report.passed, report.reason
    assert report.agreement == 1
    assert report.gap <= 1e-3


def test_top_logprobs_are_the_most_likely_and_the_chosen_need_not_be_among_them(
    engine: VllmEngine, gemma: Gemma
) -> None:
    asked = request(engine, PROMPTS[0], max_tokens=8, temperature=2.0, seed=3, logprobs=3, ignore_eos=True)

    events = asyncio.run(events_of(engine, asked))

    told = [event.tokens[0] for event in events]
    path = Reference(gemma, asked)
    logits = path.prefill()
    for each in told:
        expected = logits.double().log_softmax(-1)
        values, tokens = expected.topk(3)
        assert [token for token, *_ in each.top] == tokens.tolist()
        assert [value for *_, value in each.top] == pytest.approx(values.tolist(), abs=1e-3)
        assert each.logprob == pytest.approx(float(expected[each.token]), abs=1e-3)
        logits = path.decode(each.token)
    assert any(each.token not in [token for token, *_ in each.top] for each in told)


def test_same_seed_gives_the_same_text_whatever_else_runs(engine: VllmEngine) -> None:
    options = {"temperature": 1.0, "top_p": 0.95, "ignore_eos": True}
    seeded = request(engine, PROMPTS[0], seed=7, **options)
    others = [request(engine, text, seed=i, **options) for i, text in enumerate(PROMPTS[1:])]

    alone = text_of(asyncio.run(events_of(engine, seeded)))
    beside = text_of(asyncio.run(together(engine, [seeded, *others]))[0])
    other = text_of(asyncio.run(events_of(engine, request(engine, PROMPTS[0], seed=8, **options))))

    assert alone == beside
    assert alone != other


def test_stop_string_across_tokens_ends_the_text_before_itself(engine: VllmEngine) -> None:
    events = asyncio.run(events_of(engine, request(engine, PROMPTS[1], ignore_eos=True)))
    whole, pieces = text_of(events), [event.text for event in events if event.text]
    border = len("".join(pieces[:4]))
    word = whole[border - 1 : border + 1]

    stopped = asyncio.run(events_of(engine, request(engine, PROMPTS[1], stop=(word,), ignore_eos=True)))
    kept = asyncio.run(
        events_of(engine, request(engine, PROMPTS[1], stop=(word,), include_stop=True, ignore_eos=True))
    )

    assert text_of(stopped) == whole[: whole.index(word)]
    assert text_of(kept) == whole[: whole.index(word)] + word
    assert stopped[-1].finish_reason == "stop"
    until(lambda: engine._llm.get_num_unfinished_requests() == 0)


def test_end_tokens_end_unless_they_are_held_back_or_ignored(engine: VllmEngine) -> None:
    ends: dict[str, object] = {"logit_bias": ((1, 100.0), (10**6, 5.0)), "max_tokens": 6}

    ended = asyncio.run(events_of(engine, request(engine, PROMPTS[0], **ends)))
    held = asyncio.run(events_of(engine, request(engine, PROMPTS[0], min_tokens=3, **ends)))
    ignored = asyncio.run(events_of(engine, request(engine, PROMPTS[0], ignore_eos=True, **ends)))

    assert [(event.text, event.finish_reason, event.completion_tokens) for event in ended] == [("", "stop", 1)]
    assert (held[-1].finish_reason, held[-1].completion_tokens) == ("stop", 4)
    assert (text_of(ignored), ignored[-1].finish_reason, ignored[-1].completion_tokens) == ("", "length", 6)


def test_cancelled_requests_free_their_places(engine: VllmEngine) -> None:
    async def leave_early() -> None:
        handles = [engine.submit(request(engine, PROMPTS[0], max_tokens=2000, ignore_eos=True)) for _ in range(6)]
        async for _ in handles[0]:
            break
        for handle in handles:
            engine.cancel(handle.id)

    before = engine.stats()

    asyncio.run(leave_early())

    until(lambda: engine.stats().held == 0)
    until(lambda: engine._llm.get_num_unfinished_requests() == 0)
    after = engine.stats()
    assert (after.running, after.queued, after.cancelled - before.cancelled) == (0, 0, 6)
    assert asyncio.run(events_of(engine, request(engine, PROMPTS[0])))[-1].finish_reason is not None


def test_full_queue_is_refused_with_a_time_to_wait(engine: VllmEngine) -> None:
    async def crowd() -> None:
        handles = []
        try:
            for _ in range(9):
                handles.append(engine.submit(request(engine, PROMPTS[0], max_tokens=500, ignore_eos=True)))
        finally:
            for handle in handles:
                engine.cancel(handle.id)

    with pytest.raises(QuotaExceeded) as refused:
        asyncio.run(crowd())

    assert refused.value.retry_after_s is not None
    assert 1 <= refused.value.retry_after_s <= 60
    until(lambda: engine.stats().running + engine.stats().queued == 0)


def test_deadline_ends_a_request_with_a_timeout(engine: VllmEngine) -> None:
    before = engine.stats().expired
    late = request(engine, PROMPTS[0], deadline=time.monotonic() + 0.5, max_tokens=20_000, ignore_eos=True)

    with pytest.raises(Timeout):
        asyncio.run(events_of(engine, late))

    until(lambda: engine.stats().running == 0)
    assert engine.stats().expired == before + 1


def test_tenants_take_turns_in_a_busy_engine(engine: VllmEngine) -> None:
    finished: list[str] = []

    async def one(tenant: str) -> None:
        await events_of(engine, request(engine, PROMPTS[0], tenant=tenant, max_tokens=8, ignore_eos=True))
        finished.append(tenant)

    async def crowd() -> None:
        await asyncio.gather(*(one("many") for _ in range(7)), one("single"))

    asyncio.run(crowd())

    assert finished.index("single") < 7, "it came last and must not wait for all that came before"


def test_what_the_adapter_cannot_do_is_refused_by_name(engine: VllmEngine) -> None:
    async def ask() -> None:
        engine.submit(GenerationRequest(tokens=(2, 5), sampling=Sampling(max_tokens=1), adapter="chest"))

    with pytest.raises(InputError) as refused:
        asyncio.run(ask())

    assert refused.value.field == "model"
    assert engine.grammars is None
    assert not engine.capabilities.grammar
