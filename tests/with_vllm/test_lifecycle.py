"""How vLLM ends: closed, killed, or not offered at all."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from medport.errors import ConfigError, NotReady, ServerError
from medport_local import phantom
from medport_local.engine import vllm_gate
from medport_local.engine.engine import EngineLimits
from medport_local.engine.loading import Gemma, load_gemma
from medport_local.engine.sequence import Event, GenerationRequest, Sampling
from medport_local.engine.vllm_engine import VllmEngine
from medport_local.engine.vllm_opening import open_vllm, place_of, verify_vllm
from medport_local.snapshot import Snapshot, open_snapshot

LIMITS = EngineLimits(max_running=4, max_queue=4, kv_bytes=256 * 2**20)


def request(engine: VllmEngine, max_tokens: int) -> GenerationRequest:
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    return GenerationRequest(tokens=engine.prompts.raw("The capital of France is", 0), sampling=sampling)


async def events_of(engine: VllmEngine, asked: GenerationRequest) -> list[Event]:
    return [event async for event in engine.submit(asked)]


def test_closing_drains_then_refuses_and_leaves_no_process(gemma: Gemma, snapshot: Snapshot) -> None:
    psutil = pytest.importorskip("psutil")
    engine = VllmEngine(gemma, snapshot, limits=LIMITS, dtype="bfloat16")
    children = [each for each in psutil.Process().children(recursive=True) if "vllm" in each.name().lower()]
    sockets = [each.laddr.ip for child in children for each in child.net_connections() if each.status == "LISTEN"]

    async def run() -> list[Event]:
        task = asyncio.create_task(events_of(engine, request(engine, 12)))
        await asyncio.sleep(0)
        await asyncio.to_thread(engine.close, 60.0)
        with pytest.raises(NotReady):
            engine.submit(request(engine, 1))
        return await task

    events = asyncio.run(run())

    assert events[-1].completion_tokens == 12
    assert not engine.healthy
    assert children
    _, left = psutil.wait_procs(children, timeout=60)
    assert not [each for each in left if each.status() != psutil.STATUS_ZOMBIE]
    assert set(sockets) <= {"127.0.0.1", "::1"}


def test_killed_worker_fails_its_requests_and_the_engine_is_not_healthy(
    gemma: Gemma, snapshot: Snapshot, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    psutil = pytest.importorskip("psutil")
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    engine = VllmEngine(gemma, snapshot, limits=LIMITS, dtype="bfloat16")
    mine = [each for each in psutil.Process().children(recursive=True) if each.pid not in before]

    async def run() -> None:
        async for _ in engine.submit(request(engine, 20_000)):
            for child in mine:
                if "worker" in child.name().lower():
                    child.kill()

    with caplog.at_level(logging.DEBUG), pytest.raises(ServerError):
        asyncio.run(run())

    assert not engine.healthy
    with pytest.raises(ServerError):
        asyncio.run(events_of(engine, request(engine, 1)))
    assert engine.stats().failed == 1
    engine.close()
    said = capfd.readouterr()
    assert "France" not in said.out + said.err + caplog.text
    assert "Dumping" not in said.out + said.err


def test_without_a_record_it_is_not_offered(gemma: Gemma, snapshot: Snapshot, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        open_vllm(gemma, snapshot, state=tmp_path, limits=LIMITS, dtype="float32")

    assert "verify" in (refused.value.remedy or "")


def test_build_for_the_cpu_is_never_offered_for_images(tmp_path: Path) -> None:
    """Its attention has no image mask: it answers, and answers wrongly. Or it does not load such a model."""
    snapshot = open_snapshot(phantom.weights_dir("medgemma"))
    gemma = load_gemma(snapshot, device="cpu", dtype="float32")
    place = place_of(LIMITS, "float32")
    if not place.device.startswith("cpu"):
        pytest.skip("vLLM here is not its build for the CPU")

    try:
        report = verify_vllm(gemma, snapshot, state=tmp_path, limits=LIMITS, dtype="float32")
    except ConfigError:
        return

    assert not report.passed
    text = [case for case in report.cases if not case.images]
    assert max(case.gap for case in text) < vllm_gate.TOLERANCE["float32"]
    # What it computes is the reference with the wrong mask, to the last digits.
    for case in report.cases:
        if case.images:
            assert case.gap == pytest.approx(case.blind_gap, abs=1e-4)
    with pytest.raises(ConfigError):
        open_vllm(gemma, snapshot, state=tmp_path, limits=LIMITS, dtype="float32")
