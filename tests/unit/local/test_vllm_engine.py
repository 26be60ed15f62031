"""vLLM's adapter without vLLM: what it is told, what becomes of its tokens, and whether it may serve at all.

A stand-in takes the place of vLLM where time and faults are the matter. What vLLM itself computes is tested in
``tests/with_vllm``.
"""

from __future__ import annotations

import asyncio
import logging
import logging.config
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport import _extras
from medport.errors import (
    ConfigError,
    InputError,
    MedportError,
    NotReady,
    QuotaExceeded,
    ServerError,
    Timeout,
    VerificationError,
)
from medport_local.engine import vllm_engine, vllm_gate, vllm_library, vllm_options
from medport_local.engine.answer import Answer
from medport_local.engine.detokenizer import Detokenizer
from medport_local.engine.engine import Capabilities, EngineLimits
from medport_local.engine.loading import Gemma, load_gemma
from medport_local.engine.prompt import PromptBuilder
from medport_local.engine.reference import Reference
from medport_local.engine.scoring import Scorer
from medport_local.engine.sequence import Event, GenerationRequest, Sampling, TokenLogprob
from medport_local.engine.vllm_engine import VllmEngine
from medport_local.engine.vllm_gate import GateReport, Place, Score
from medport_local.engine.vllm_opening import open_vllm, place_of, verify_vllm
from medport_local.engine.vllm_tickets import Ticket, Tickets
from medport_local.engine.vllm_weights import unchanged
from medport_local.snapshot import Snapshot, open_snapshot

PLACE = Place(version="0.32.0", device="cuda H100", dtype="float32", eager=False, prefix_cache=False)
EOS = frozenset({1, 106})


@pytest.fixture(scope="module")
def gemma(gemma_snapshot: Snapshot) -> Gemma:
    return load_gemma(gemma_snapshot, device="cpu")


# What vLLM is told


def told(**sampling: Any) -> dict[str, Any]:
    return vllm_options.sampling_options(
        Sampling(**{"max_tokens": 9, **sampling}), eos_ids=EOS, vocabulary=500, room=100
    )


def test_default_sampling_is_greedy_and_ends_at_our_end_tokens() -> None:
    options = told()

    assert (options["temperature"], options["max_tokens"], options["seed"]) == (0.0, 9, None)
    assert (options["stop_token_ids"], options["ignore_eos"]) == ([1, 106], True)
    assert (options["logprobs"], options["logit_bias"]) == (None, None)
    assert options["detokenize"] is False


def test_sampling_options_reach_vllm_under_its_names() -> None:
    same = {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 11, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "repetition_penalty": 1.1, "min_tokens": 3, "logprobs": 5,
    }  # fmt: skip

    options = told(**same)

    assert {name: options[name] for name in same} == same


def test_end_tokens_are_those_of_model_and_request_unless_ignored() -> None:
    assert told(stop_token_ids=(7, 1))["stop_token_ids"] == [1, 7, 106]
    assert told(stop_token_ids=(7,), ignore_eos=True)["stop_token_ids"] == [7]


def test_ids_outside_the_vocabulary_do_nothing() -> None:
    options = told(logit_bias=((3, 1.0), (500, 9.0), (-1, 9.0), (3, 0.5)), stop_token_ids=(500, 10**6))

    assert options["logit_bias"] == {3: 1.5}
    assert options["stop_token_ids"] == [1, 106]


@given(
    max_tokens=st.integers(1, 10_000),
    room=st.integers(1, 9_000),
    min_tokens=st.integers(0, 10_000),
    temperature=st.floats(0, 2),
    top_k=st.integers(-1, 10**6),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_whatever_serving_lets_through_is_in_the_ranges_that_vllm_takes(
    max_tokens: int, room: int, min_tokens: int, temperature: float, top_k: int, seed: int | None
) -> None:
    sampling = Sampling(
        max_tokens=max_tokens, min_tokens=min_tokens, temperature=temperature, top_k=top_k, seed=seed
    )

    options: dict[str, Any] = vllm_options.sampling_options(sampling, eos_ids=EOS, vocabulary=500, room=room)

    assert 1 <= options["max_tokens"] <= min(max_tokens, room)
    assert options["min_tokens"] <= options["max_tokens"]
    assert options["temperature"] == 0 or 0.01 <= options["temperature"] <= 2
    assert (options["temperature"] == 0) == sampling.greedy
    assert options["top_k"] >= 0
    assert options["seed"] is None or 0 <= options["seed"] < 2**63


def test_negative_seed_is_still_a_seed() -> None:
    assert told(temperature=1.0, seed=-1)["seed"] == 2**63 - 1


@pytest.mark.parametrize(
    ("sampling", "adapter", "field"),
    [
        (Sampling(max_tokens=1), "chest", "model"),
        (Sampling(max_tokens=1, grammar=object()), None, "response_format"),  # type: ignore[arg-type]
        (Sampling(max_tokens=1, logprobs=21), None, "top_logprobs"),
    ],
)
def test_what_the_adapter_cannot_do_is_refused_by_name(
    sampling: Sampling, adapter: str | None, field: str
) -> None:
    with pytest.raises(InputError) as refused:
        vllm_options.refuse_unsupported(sampling, adapter)

    assert refused.value.field == field
    assert refused.value.remedy


def test_engine_options_run_no_code_of_the_snapshot_and_log_no_request(gemma_snapshot: Snapshot) -> None:
    limits = EngineLimits(max_running=5, kv_bytes=12345)

    options = vllm_options.engine_options(gemma_snapshot, limits, dtype="bfloat16", eager=False)

    assert (options["trust_remote_code"], options["load_format"]) == (False, "safetensors")
    assert (options["enable_log_requests"], options["disable_log_stats"]) == (False, True)
    assert (options["max_num_seqs"], options["kv_cache_memory_bytes"]) == (5, 12345)
    assert (options["enable_prefix_caching"], options["disable_chunked_mm_input"]) == (False, True)
    assert options["logprobs_mode"] == "raw_logprobs"


def test_prompts_are_shared_only_if_the_operator_asks(gemma_snapshot: Snapshot) -> None:
    limits = EngineLimits(reuse_bytes=1)

    options = vllm_options.engine_options(gemma_snapshot, limits, dtype="bfloat16", eager=False)

    assert options["enable_prefix_caching"] is True


def test_environment_is_silent_and_offline() -> None:
    environment = vllm_options.ENVIRONMENT

    for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        assert environment[name] == "1"
    assert environment["VLLM_PLUGINS"] == ""
    assert environment["VLLM_HOST_IP"] == "127.0.0.1"


def test_loggers_tell_faults_but_never_dump_requests(capsys: pytest.CaptureFixture[str]) -> None:
    logging.config.dictConfig(dict(vllm_options.LOGGING))

    logging.getLogger("vllm.v1.engine.core").error("a fault")
    logging.getLogger("vllm.v1.engine.core").info("a remark")
    logging.getLogger("vllm.logging_utils.dump_input").error("CANARY")

    said = capsys.readouterr()
    assert "a fault" in said.err
    assert "a remark" not in said.err
    assert "CANARY" not in said.out + said.err


def test_most_likely_tokens_are_told_by_rank_without_the_chosen_one() -> None:
    position = {
        9: SimpleNamespace(rank=41, logprob=-8.0),
        4: SimpleNamespace(rank=2, logprob=-1.5),
        7: SimpleNamespace(rank=1, logprob=-0.5),
    }

    assert vllm_options.likely(position, 2) == [(7, -0.5), (4, -1.5)]
    assert vllm_options.likely(position, 0) == []


# Tokens → events

PIECES = [b"", b"", b"a", b"b", b"ab", b"\xc3", b"\xa9", b" "]


def answer(*, room: int = 100, special: dict[int, bytes] | None = None, **sampling: Any) -> Answer:
    asked = Sampling(**{"max_tokens": 9, **sampling})
    detokenizer = Detokenizer(PIECES, asked.stop, include_stop=asked.include_stop, special=special)
    return Answer(asked, detokenizer, eos_ids=frozenset({1}), room=room)


def events(made: Answer, tokens: Sequence[int]) -> list[Event]:
    """All there are until the answer ends."""
    found: list[Event] = []
    for token in tokens:
        found.append(made.accept(token, logprob=-1.0, top=((2, -0.5),)))
        if found[-1].finish_reason:
            break
    return found


@pytest.mark.parametrize(
    ("sampling", "tokens", "text", "finish", "count"),
    [
        ({"max_tokens": 3}, [2, 3, 2, 3], "aba", "length", 3),
        ({"max_tokens": 3, "room": 2}, [2, 3, 2, 3], "ab", "length", 2),
        ({}, [2, 1, 3], "a", "stop", 2),
        ({"ignore_eos": True, "max_tokens": 3}, [2, 1, 3], "ab", "length", 3),
        ({"include_stop": True, "special": {1: b"<eos>"}}, [2, 1, 3], "a<eos>", "stop", 2),
        ({"stop_token_ids": (4,)}, [2, 4, 3], "a", "stop", 2),
        ({"stop": ("ba",)}, [2, 3, 2, 3], "a", "stop", 3),
        ({"stop": ("ba",), "include_stop": True}, [2, 3, 2, 3], "aba", "stop", 3),
        ({"stop": ("a",), "min_tokens": 2}, [2, 3, 2, 3], "ab", "stop", 3),
        ({"stop": ("bx",), "max_tokens": 2}, [2, 3], "ab", "length", 2),
        ({"max_tokens": 2}, [5, 6], "é", "length", 2),
        ({"max_tokens": 1}, [5], "�", "length", 1),
    ],
)
def test_answer_ends_where_it_must(
    sampling: dict[str, Any], tokens: list[int], text: str, finish: str, count: int
) -> None:
    found = events(answer(**sampling), tokens)

    assert "".join(event.text for event in found) == text
    assert (found[-1].finish_reason, found[-1].completion_tokens, len(found)) == (finish, count, count)


def test_each_token_is_told_but_the_one_that_ended_the_answer() -> None:
    found = events(answer(), [2, 5, 1])

    assert [event.tokens for event in found] == [
        (TokenLogprob(2, b"a", -1.0, ((2, b"a", -0.5),)),),
        (TokenLogprob(5, b"\xc3", -1.0, ((2, b"a", -0.5),)),),
        (),
    ]


@given(st.lists(st.integers(2, 7), min_size=1, max_size=12))
def test_events_together_are_the_whole_text(tokens: list[int]) -> None:
    found = events(answer(max_tokens=len(tokens)), tokens)

    assert "".join(event.text for event in found) == b"".join(PIECES[i] for i in tokens).decode("utf-8", "replace")


# Who is in vLLM's hands


def ticket(id: int, tenant: str = "") -> Ticket:
    pending: Any = SimpleNamespace(id=id)
    request = GenerationRequest(tokens=(2, 3), sampling=Sampling(max_tokens=9), tenant=tenant)
    return Ticket(pending, request, answer(), room=9)


def test_full_house_is_refused_with_a_time_to_wait() -> None:
    tickets = Tickets(EngineLimits(max_running=1, max_queue=1))
    tickets.add(ticket(1))
    tickets.add(ticket(2))

    with pytest.raises(QuotaExceeded) as refused:
        tickets.add(ticket(3))

    assert refused.value.retry_after_s == 1
    assert (tickets.census().running, tickets.census().queued) == (1, 1)


def test_time_to_wait_grows_with_the_time_that_requests_take() -> None:
    now = [0.0]
    tickets = Tickets(EngineLimits(max_running=1, max_queue=1), clock=lambda: now[0])
    for id in range(20):
        slow = ticket(id)
        tickets.add(slow)
        now[0] += 30
        slow.outcome = "finished"
        tickets.leave(slow)
    tickets.add(ticket(100))
    tickets.add(ticket(101))

    with pytest.raises(QuotaExceeded) as refused:
        tickets.add(ticket(102))

    assert 25 <= (refused.value.retry_after_s or 0) <= 30


def test_first_request_of_a_tenant_goes_before_the_second_of_another() -> None:
    tickets = Tickets(EngineLimits())
    many = [ticket(id, "many") for id in range(3)]
    single = ticket(9, "single")

    for each in (*many, single):
        tickets.add(each)

    assert [each.priority for each in many] == [0, 1, 2]
    assert single.priority == 0
    tickets.leave(many[0])
    later = ticket(10, "many")
    tickets.add(later)
    assert later.priority == 2


def test_leaving_counts_once() -> None:
    tickets = Tickets(EngineLimits())
    one = ticket(1)
    tickets.add(one)
    one.outcome = "cancelled"

    tickets.leave(one)
    tickets.leave(one)

    assert tickets.counts()["cancelled"] == 1
    assert tickets.get(1) is None


def test_closed_house_takes_nobody() -> None:
    tickets = Tickets(EngineLimits())
    one = ticket(1)
    tickets.add(one)

    remaining = tickets.close(0.0)

    assert remaining == [one]
    with pytest.raises(NotReady):
        tickets.add(ticket(2))


# The gate


class Slow:
    """An engine on the reference path; ``spoil`` changes what it says."""

    def __init__(
        self, gemma: Gemma, snapshot: Snapshot, spoil: Callable[[TokenLogprob], TokenLogprob] = lambda told: told
    ) -> None:
        self.limits = EngineLimits()
        self._gemma = gemma
        self._spoil = spoil
        self.images = gemma.images
        self.prompts = PromptBuilder(gemma, model_id="toy", max_context=snapshot.max_context, max_images=8)

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Event]:
        path = Reference(self._gemma, request)
        logits = path.prefill()
        for i in range(request.sampling.max_tokens):
            logprobs = logits.double().log_softmax(-1)
            token = int(logprobs.argmax())
            yield Event(
                tokens=(self._spoil(TokenLogprob(token, b"", float(logprobs[token]))),), completion_tokens=i
            )
            logits = path.decode(token)


def verified(engine: Any, gemma: Gemma, snapshot: Snapshot, *, images: bool = True) -> GateReport:
    verify = vllm_gate.verify_images if images else vllm_gate.verify_text
    return verify(engine, Scorer(gemma), snapshot, PLACE)


def test_engine_that_computes_as_the_reference_passes(gemma: Gemma, gemma_snapshot: Snapshot) -> None:
    report = verified(Slow(gemma, gemma_snapshot), gemma, gemma_snapshot)

    assert report.passed, report.reason
    assert (report.agreement, report.images) == (1, True)
    assert {case.images for case in report.cases} == {0, 1, 3}
    assert all(case.tokens == case.equal for case in report.cases)


def test_engine_whose_image_tokens_do_not_see_each_other_fails(gemma: Gemma, gemma_snapshot: Snapshot) -> None:
    blind = replace(gemma, image_token_id=-1)
    engine = Slow(blind, gemma_snapshot)
    engine.prompts = PromptBuilder(gemma, model_id="toy", max_context=gemma_snapshot.max_context, max_images=8)

    report = verified(engine, gemma, gemma_snapshot)

    assert not report.passed
    assert [case.gap < 1e-5 for case in report.cases] == [case.images == 0 for case in report.cases]
    seen = [case for case in report.cases if case.images]
    assert [case.gap for case in seen] == pytest.approx([case.blind_gap for case in seen])


def test_engine_with_right_tokens_and_wrong_logprobs_fails(gemma: Gemma, gemma_snapshot: Snapshot) -> None:
    engine = Slow(gemma, gemma_snapshot, lambda told: replace(told, logprob=told.logprob - 0.002))

    report = verified(engine, gemma, gemma_snapshot, images=False)

    assert not report.passed
    assert "logprobs" in report.reason


def test_engine_that_says_no_number_fails(gemma: Gemma, gemma_snapshot: Snapshot, tmp_path: Path) -> None:
    engine = Slow(gemma, gemma_snapshot, lambda told: replace(told, logprob=float("nan")))

    report = verified(engine, gemma, gemma_snapshot, images=False)

    assert not report.passed
    assert "logprobs" in report.reason
    vllm_gate.write_record(tmp_path, gemma_snapshot, report)
    assert vllm_gate.read_record(tmp_path, gemma_snapshot, PLACE) == report


def test_engine_that_chooses_unlikely_tokens_fails(gemma: Gemma, gemma_snapshot: Snapshot) -> None:
    engine = Slow(gemma, gemma_snapshot, lambda told: replace(told, token=(told.token + 1) % 300))

    report = verified(engine, gemma, gemma_snapshot, images=False)

    assert not report.passed
    assert report.agreement < 1


def test_engine_that_breaks_off_fails(gemma: Gemma, gemma_snapshot: Snapshot) -> None:
    class Short(Slow):
        async def submit(self, request: GenerationRequest) -> AsyncIterator[Event]:
            most = 1 if request.images else 20
            cut = replace(request, sampling=replace(request.sampling, max_tokens=most))
            async for event in super().submit(cut):
                yield event

    report = verified(Short(gemma, gemma_snapshot), gemma, gemma_snapshot)

    assert not report.passed
    assert "8 of 48 tokens" in report.reason
    assert {case.equal for case in report.cases} == {2, 40}


def test_engine_is_asked_no_more_at_once_than_it_takes(gemma: Gemma, gemma_snapshot: Snapshot) -> None:
    asked: list[int] = []

    class Counting(Slow):
        running = 0

        async def submit(self, request: GenerationRequest) -> AsyncIterator[Event]:
            self.running += 1
            asked.append(self.running)
            await asyncio.sleep(0)
            async for event in super().submit(request):
                yield event
            self.running -= 1

    engine = Counting(gemma, gemma_snapshot)
    engine.limits = EngineLimits(max_running=2)

    assert verified(engine, gemma, gemma_snapshot, images=False).passed
    assert (max(asked[:3]), max(asked[3:]), len(asked)) == (1, 2, 6)


def test_test_that_could_not_tell_a_wrong_mask_is_no_pass(gemma: Gemma, gemma_snapshot: Snapshot) -> None:
    class Insensitive(Scorer):
        def __call__(
            self, request: GenerationRequest, tokens: Sequence[int], *, blind: bool = False
        ) -> list[Score]:
            return super().__call__(request, tokens)

    engine: Any = Slow(gemma, gemma_snapshot)

    report = vllm_gate.verify_images(engine, Insensitive(gemma), gemma_snapshot, PLACE)

    assert not report.passed
    assert "cannot tell" in report.reason


def test_tokens_as_good_as_equally_likely_are_no_fault() -> None:
    scores = [Score(logprob=-1.0, best=5, best_logprob=-0.9995), Score(logprob=-1.0, best=6, best_logprob=-0.5)]
    request = GenerationRequest(tokens=(2,), sampling=Sampling(max_tokens=2))
    probe: Any = SimpleNamespace(name="tie", request=request)
    given_answer = vllm_gate._Answer((4, 4), (-1.0, -1.0))

    case = vllm_gate._case(probe, [given_answer], lambda *_, **__: scores, 1e-3)

    assert (case.tokens, case.equal, case.ties) == (2, 0, 1)


def record(snapshot: Snapshot, **changes: Any) -> GateReport:
    values: dict[str, Any] = {
        "place": PLACE, "snapshot_sha256": snapshot.snapshot_sha256, "model_id": "toy", "images": True,
        "cases": (), "agreement": 1.0, "gap": 0.0, "passed": True, "reason": "all well", **changes,
    }  # fmt: skip
    return GateReport(**values)


def test_passing_record_of_this_very_place_and_snapshot_offers_it(gemma_snapshot: Snapshot) -> None:
    assert vllm_gate.offered(gemma_snapshot, record(gemma_snapshot), PLACE)[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"passed": False, "reason": "image first: wrong"}, "image first: wrong"),
        ({"images": False}, "text only"),
        ({"snapshot_sha256": "0" * 64}, "another snapshot"),
        ({"place": PLACE.model_copy(update={"version": "0.33.0"})}, "version"),
        ({"place": PLACE.model_copy(update={"device": "cpu cpu"})}, "device"),
        ({"place": PLACE.model_copy(update={"dtype": "bfloat16"})}, "dtype"),
        ({"place": PLACE.model_copy(update={"prefix_cache": True})}, "prefix_cache"),
        ({"place": PLACE.model_copy(update={"eager": True})}, "eager"),
    ],
)
def test_any_other_record_does_not(gemma_snapshot: Snapshot, changes: dict[str, Any], said: str) -> None:
    allowed, reason = vllm_gate.offered(gemma_snapshot, record(gemma_snapshot, **changes), PLACE)

    assert not allowed
    assert said in reason


def test_text_record_is_enough_for_a_model_without_images(gemma_snapshot: Snapshot) -> None:
    text_only = replace(gemma_snapshot, takes_images=False)

    assert vllm_gate.offered(text_only, record(text_only, images=False), PLACE)[0]


def test_without_a_record_the_error_names_the_command_that_makes_one(
    gemma_snapshot: Snapshot, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        vllm_gate.require(gemma_snapshot, tmp_path, PLACE)

    assert refused.value.field == "engine"
    assert "medport engine verify" in (refused.value.remedy or "")


def test_record_is_found_again_in_its_place_only(gemma_snapshot: Snapshot, tmp_path: Path) -> None:
    kept = record(gemma_snapshot)
    elsewhere = PLACE.model_copy(update={"device": "cpu cpu"})

    vllm_gate.write_record(tmp_path / "state", gemma_snapshot, kept)

    assert vllm_gate.require(gemma_snapshot, tmp_path / "state", PLACE) == kept
    assert vllm_gate.read_record(tmp_path / "state", gemma_snapshot, elsewhere) is None
    assert len(list((tmp_path / "state").iterdir())) == 1


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"passed": true}'])
def test_record_that_cannot_be_read_is_none(gemma_snapshot: Snapshot, tmp_path: Path, content: str) -> None:
    vllm_gate.record_path(tmp_path, gemma_snapshot, PLACE).write_text(content)

    assert vllm_gate.read_record(tmp_path, gemma_snapshot, PLACE) is None


# The weights that vLLM reads itself


@pytest.fixture
def own_snapshot(text_gemma_folder: Path, tmp_path: Path) -> Snapshot:
    for file in text_gemma_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return open_snapshot(tmp_path)


def test_untouched_files_are_unchanged(own_snapshot: Snapshot) -> None:
    with unchanged(own_snapshot):
        pass


@pytest.mark.parametrize("other", [b"\x00", b""])
def test_file_that_is_written_to_meanwhile_is_refused_even_if_it_is_set_back(
    own_snapshot: Snapshot, other: bytes
) -> None:
    path = own_snapshot.directory / own_snapshot.shards[0]

    def exchange() -> None:
        before, times = path.read_bytes(), path.stat()
        time.sleep(0.02)  # the clock of change times is coarse
        path.write_bytes(before[:-1] + other)
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    with pytest.raises(VerificationError), unchanged(own_snapshot):
        exchange()


# vLLM that is absent, or does not fit


@pytest.fixture
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)


@pytest.mark.usefixtures("no_vllm")
def test_missing_package_is_named_with_its_extra(gemma: Gemma, gemma_snapshot: Snapshot, tmp_path: Path) -> None:
    for attempt in (
        lambda: place_of(EngineLimits(), "bfloat16"),
        lambda: VllmEngine(gemma, gemma_snapshot),
        lambda: open_vllm(gemma, gemma_snapshot, state=tmp_path),
    ):
        with pytest.raises(ConfigError) as refused:
            attempt()

        assert "vllm" in refused.value.message
        assert "medport[vllm]" in (refused.value.remedy or "")


def test_int8_weights_are_refused_before_vllm_is_looked_for(
    gemma: Gemma, gemma_snapshot: Snapshot, tmp_path: Path
) -> None:
    snapshot = replace(gemma_snapshot, int8=True)

    for attempt in (open_vllm, verify_vllm):
        with pytest.raises(ConfigError, match="int8"):
            attempt(gemma, snapshot, state=tmp_path)


def test_package_that_does_not_fit_is_told_from_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, *, extra: str) -> None:
        raise OSError("libtorch_cuda.so: cannot open shared object file")

    monkeypatch.setattr(_extras, "load", broken)

    with pytest.raises(ConfigError) as refused:
        vllm_library.Library()

    assert refused.value.field == "engine"
    assert "torchaudio" in (refused.value.remedy or "")


# The engine around a stand-in for vLLM


class Dead(Exception):
    pass


class Refusal(Exception):
    pass


class StandIn:
    """``Library`` and ``AsyncLLM`` in one: gives the tokens of ``script``, then waits for ever or fails."""

    client_error = Refusal
    eager = True

    def __init__(self, script: Sequence[int], fault: Exception | None = None) -> None:
        self.script, self.fault = script, fault
        self.errored = False
        self.ended: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.down = False
        text = SimpleNamespace(num_hidden_layers=2, num_key_value_heads=1, head_dim=4)
        self.model_config = SimpleNamespace(max_model_len=300, get_vocab_size=lambda: 500, hf_text_config=text)

    def start(self, options: object) -> StandIn:
        return self

    def parameters(self, options: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(options)
        return options

    def prompt(self, request: GenerationRequest, blocks: object, *, shared: bool, dtype: object) -> object:
        return request

    async def generate(
        self, prompt: GenerationRequest, parameters: dict[str, Any], *, request_id: str, priority: int
    ) -> AsyncIterator[Any]:
        try:
            for token in self.script[: parameters["max_tokens"]]:
                await asyncio.sleep(0)
                position = {token: SimpleNamespace(rank=1, logprob=-0.25)}
                completion = SimpleNamespace(token_ids=[token], logprobs=[position])
                yield SimpleNamespace(outputs=[completion], num_cached_tokens=1)
            if self.fault is not None:
                self.errored = isinstance(self.fault, Dead)
                raise self.fault
            await asyncio.sleep(3600)
        finally:
            self.ended.append(request_id)

    def shutdown(self, timeout: float) -> None:
        self.down = True


NewEngine = Callable[..., VllmEngine]


@pytest.fixture
def stand_in(
    monkeypatch: pytest.MonkeyPatch, gemma: Gemma, gemma_snapshot: Snapshot
) -> Iterator[Callable[..., tuple[VllmEngine, StandIn]]]:
    opened: list[VllmEngine] = []

    def make(script: Sequence[int], fault: Exception | None = None, **limits: Any) -> tuple[VllmEngine, StandIn]:
        vllm = StandIn(script, fault)
        monkeypatch.setattr(vllm_engine, "Library", lambda: vllm)
        limits = {"kv_bytes": 2**20, **limits}
        opened.append(VllmEngine(gemma, gemma_snapshot, limits=EngineLimits(**limits), dtype="float32"))
        return opened[-1], vllm

    yield make
    for engine in opened:
        engine.close()


WORDS = "the lungs are clear"


def script(gemma: Gemma) -> list[int]:
    return gemma.text.encode(WORDS)


def asking(**sampling: Any) -> GenerationRequest:
    return GenerationRequest(tokens=(2, 150, 151), sampling=Sampling(**{"max_tokens": 200, **sampling}))


async def collected(engine: VllmEngine, asked: GenerationRequest) -> list[Event]:
    return [event async for event in engine.submit(asked)]


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)


StandsIn = Callable[..., tuple[VllmEngine, StandIn]]


def test_each_token_becomes_an_event(stand_in: StandsIn, gemma: Gemma) -> None:
    tokens = script(gemma)
    engine, _ = stand_in(tokens)

    found = asyncio.run(collected(engine, asking(max_tokens=len(tokens), logprobs=1)))

    assert "".join(event.text for event in found) == WORDS
    assert [event.completion_tokens for event in found] == list(range(1, len(tokens) + 1))
    assert found[-1].finish_reason == "length"
    assert [(each.token, each.logprob) for event in found for each in event.tokens] == [(t, -0.25) for t in tokens]
    stats = engine.stats()
    assert (stats.finished, stats.held, stats.tokens_generated) == (1, 0, len(tokens))
    assert (stats.cache_hits, stats.prompt_tokens, stats.kv_bytes_total) == (1, 2, 2**20)


def test_context_is_what_vllm_found_room_for(stand_in: StandsIn, gemma_snapshot: Snapshot) -> None:
    engine, vllm = stand_in([150] * 400)
    assert gemma_snapshot.max_context > 300

    found = asyncio.run(collected(engine, asking(max_tokens=400)))

    assert engine.prompts.room(()) == 300
    assert (found[-1].finish_reason, found[-1].completion_tokens) == ("length", 297)
    assert vllm.asked[0]["max_tokens"] == 297


def test_stop_string_ends_the_answer_and_frees_vllm(stand_in: StandsIn, gemma: Gemma) -> None:
    engine, vllm = stand_in(script(gemma))

    found = asyncio.run(collected(engine, asking(stop=("s a",))))

    assert "".join(event.text for event in found) == "the lung"
    assert found[-1].finish_reason == "stop"
    until(lambda: vllm.ended == ["1"])


def test_leaving_early_cancels(stand_in: StandsIn) -> None:
    engine, vllm = stand_in([150])

    async def leave() -> None:
        async for _ in engine.submit(asking()):
            break

    asyncio.run(leave())

    until(lambda: engine.stats().cancelled == 1)
    assert vllm.ended == ["1"]
    assert (engine.stats().held, engine.stats().failed) == (0, 0)


def test_request_cancelled_before_it_began_never_reaches_vllm(stand_in: StandsIn) -> None:
    engine, vllm = stand_in([150])

    async def change_of_mind() -> None:
        engine._loop.call_soon_threadsafe(time.sleep, 0.2)  # so that it cannot begin yet
        engine.cancel(engine.submit(asking()).id)

    asyncio.run(change_of_mind())

    until(lambda: engine.stats().cancelled == 1)
    assert engine.stats().running == 0
    assert len(vllm.ended) <= 1


def test_deadline_ends_a_request_with_a_timeout(stand_in: StandsIn) -> None:
    engine, vllm = stand_in([150])
    late = replace(asking(), deadline=time.monotonic() + 0.05)

    with pytest.raises(Timeout):
        asyncio.run(collected(engine, late))

    until(lambda: engine.stats().expired == 1)
    assert vllm.ended == ["1"]


def test_deadline_of_a_finished_request_does_nothing(stand_in: StandsIn) -> None:
    engine, _ = stand_in([150])

    asyncio.run(collected(engine, replace(asking(max_tokens=1), deadline=time.monotonic() + 0.05)))
    time.sleep(0.1)

    assert (engine.stats().finished, engine.stats().expired) == (1, 0)


@pytest.mark.parametrize(
    ("fault", "error"), [(RuntimeError("CANARY"), ServerError), (Refusal("CANARY"), InputError)]
)
def test_fault_of_one_request_is_its_own_and_never_quoted(
    stand_in: StandsIn, caplog: pytest.LogCaptureFixture, fault: Exception, error: type[MedportError]
) -> None:
    engine, _ = stand_in([150], fault)

    with pytest.raises(error) as failed:
        asyncio.run(collected(engine, asking()))

    assert engine.healthy
    assert engine.stats().failed == 1
    assert type(fault).__name__ in caplog.text
    assert "CANARY" not in caplog.text + str(failed.value)


def test_dead_vllm_is_a_server_error_and_not_healthy(stand_in: StandsIn) -> None:
    engine, _ = stand_in([150], Dead())

    with pytest.raises(ServerError):
        asyncio.run(collected(engine, asking()))

    assert not engine.healthy
    with pytest.raises(ServerError):
        asyncio.run(collected(engine, asking()))


def test_answer_that_vllm_breaks_off_is_a_server_error(
    stand_in: StandsIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: object, **__: object) -> AsyncIterator[Any]:
        return
        yield

    engine, vllm = stand_in([150])
    monkeypatch.setattr(vllm, "generate", nothing)

    with pytest.raises(ServerError):
        asyncio.run(collected(engine, asking()))


def test_closing_waits_for_those_that_run_then_refuses(stand_in: StandsIn) -> None:
    engine, vllm = stand_in([150] * 20)

    async def run() -> list[Event]:
        task = asyncio.create_task(collected(engine, asking(max_tokens=20)))
        await asyncio.sleep(0)
        await asyncio.to_thread(engine.close, 30.0)
        with pytest.raises(NotReady):
            engine.submit(asking())
        return await task

    assert asyncio.run(run())[-1].completion_tokens == 20
    assert vllm.down
    assert not engine.healthy


def test_closing_without_patience_tells_those_that_wait(stand_in: StandsIn) -> None:
    engine, vllm = stand_in([150])

    async def run() -> None:
        task = asyncio.create_task(collected(engine, asking()))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.close)
        with pytest.raises(NotReady):
            await task

    asyncio.run(run())
    assert vllm.ended == ["1"]
    engine.close()  # once more does nothing


def test_model_that_vllm_cannot_load_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch, gemma: Gemma, gemma_snapshot: Snapshot
) -> None:
    vllm = StandIn([])

    def broken(options: object) -> None:
        raise ValueError("no room")

    monkeypatch.setattr(vllm, "start", broken)
    monkeypatch.setattr(vllm_engine, "Library", lambda: vllm)

    with pytest.raises(ConfigError) as refused:
        VllmEngine(gemma, gemma_snapshot)

    assert "ValueError" in refused.value.message
    assert refused.value.field == "engine"


def test_snapshot_that_changes_while_vllm_loads_is_refused_and_vllm_stopped(
    monkeypatch: pytest.MonkeyPatch, own_snapshot: Snapshot
) -> None:
    gemma = load_gemma(own_snapshot, device="cpu")
    vllm = StandIn([])
    path = own_snapshot.directory / own_snapshot.shards[0]

    def touched(options: object) -> StandIn:
        time.sleep(0.02)
        path.write_bytes(path.read_bytes())
        return vllm

    monkeypatch.setattr(vllm, "start", touched)
    monkeypatch.setattr(vllm_engine, "Library", lambda: vllm)

    with pytest.raises(VerificationError):
        VllmEngine(gemma, own_snapshot)

    until(lambda: vllm.down)


def test_engine_says_what_it_can(stand_in: StandsIn) -> None:
    engine, _ = stand_in([])

    assert engine.capabilities == Capabilities(images=True, grammar=False)
    assert engine.grammars is None
    assert engine.images is not None
    assert np.asarray(engine.images.side_px) > 0
