"""What does the adapter cost, against vLLM driven directly with the same requests?

One vLLM serves both, in turns: through our ``Engine`` protocol, whose events are read in another thread's event
loop as serving does; and bare, by ``AsyncLLM.generate`` in its own event loop. Greedy, 64 tokens in and 16 out,
text only. ``MEDPORT_GEMMA_270M`` names a directory of weights. The ratio is of times: 1.05 is 95 % of its speed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.gemma_270m import MISSING, WEIGHTS, copy_to

from medport_local.engine.engine import EngineLimits
from medport_local.engine.loading import load_gemma
from medport_local.engine.sequence import GenerationRequest, Sampling
from medport_local.engine.vllm_engine import VllmEngine
from medport_local.engine.vllm_options import sampling_options
from medport_local.snapshot import open_snapshot

BATCHES = (1, 4, 16)
PROMPT, ANSWER = 64, 16


def main() -> None:
    given = harness.arguments(__doc__, rounds=5)
    if WEIGHTS is None:
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        snapshot = open_snapshot(copy_to(Path(folder) / "270m"))
        gemma = load_gemma(snapshot, device="cpu", dtype="bfloat16")
        limits = EngineLimits(max_running=max(BATCHES), kv_bytes=512 * 2**20)
        engine = VllmEngine(gemma, snapshot, limits=limits, dtype="bfloat16")
        try:
            table = [row for batch in BATCHES for row in _measured(engine, batch, given.rounds)]
        finally:
            engine.close()
    notes = [f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}"]
    harness.report(__doc__, table, given.json, notes=notes)


def _measured(engine: VllmEngine, batch: int, rounds: int) -> list[harness.Row]:
    requests = [
        GenerationRequest(
            tokens=(2, *range(1000 + 100 * i, 1000 + 100 * i + PROMPT - 1)),
            sampling=Sampling(max_tokens=ANSWER, ignore_eos=True),
        )
        for i in range(batch)
    ]
    cases: dict[str, Callable[[], object]] = {
        "bare vLLM": lambda: asyncio.run_coroutine_threadsafe(_bare(engine, requests), engine._loop).result(),
        "adapter": lambda: asyncio.run(_adapter(engine, requests)),
    }
    samples = harness.alternate(cases, rounds, warm_up=1)
    return harness.rows(f"batch {batch}", samples, "bare vLLM")


async def _adapter(engine: VllmEngine, requests: list[GenerationRequest]) -> None:
    async def one(request: GenerationRequest) -> int:
        return [event async for event in engine.submit(request)][-1].completion_tokens

    assert set(await asyncio.gather(*map(one, requests))) == {ANSWER}


async def _bare(engine: VllmEngine, requests: list[GenerationRequest]) -> None:
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    async def one(i: int, request: GenerationRequest) -> int:
        options: dict[str, Any] = sampling_options(request.sampling, eos_ids=frozenset(), vocabulary=1, room=10**6)
        parameters = SamplingParams(**options, output_kind=RequestOutputKind.DELTA)
        outputs = engine._llm.generate(tokens_input(list(request.tokens)), parameters, request_id=f"bare {i}")
        return sum([len(output.outputs[0].token_ids) async for output in outputs])

    assert set(await asyncio.gather(*(one(i, each) for i, each in enumerate(requests)))) == {ANSWER}


if __name__ == "__main__":
    main()
