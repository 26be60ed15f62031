"""What does a row of logits cost on its way to a token, and what the definition that the tests compare with?

At MedGemma's 262,144 tokens, on the CPU in one thread, in batches of 1 and of 16. The logits are random: "peaked"
ones are like those of a model that knows what to say (normal, spread 1.5, and 60 tokens 6 to 16 above the rest),
"flat" ones have their probability in tens of thousands of tokens (normal, spread 3), which no short cut likes.
Per row, so the two batches can be compared. The baseline is the plain way at the same options: torch's argmax, the
dense penalties, ``distribution``, log_softmax and topk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import harness
import torch

from medport_local.engine.distribution import drawn
from medport_local.engine.loading import use_one_thread
from medport_local.engine.sampler import Sampler
from medport_local.engine.sequence import GenerationRequest, Sampling, Sequence

SIZE = 262_144
PROMPT = tuple(range(3, 300))
DRAWN: dict[str, Any] = {"temperature": 0.8, "seed": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": DRAWN,
    "top_k 64, top_p 0.95": {**DRAWN, "top_k": 64, "top_p": 0.95},
    "top_p 0.95": {**DRAWN, "top_p": 0.95},
    "min_p 0.05": {**DRAWN, "min_p": 0.05},
    "penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.5},
    "logprobs 5": {"logprobs": 5},
}


def main() -> None:
    given = harness.arguments(__doc__, rounds=15)
    use_one_thread()
    table: list[harness.Row] = []
    for kind in ("peaked", "flat"):
        for rows in (1, 16):
            logits = _logits(kind, rows)
            for name, options in OPTIONS.items():
                table += _compared(
                    f"{kind}, batch {rows}", name, logits, Sampling(max_tokens=1000, **options), given
                )
    harness.report(__doc__, table, given.json)


def _compared(what: str, name: str, logits: torch.Tensor, sampling: Sampling, given: Any) -> list[harness.Row]:
    sampler = Sampler()
    request = GenerationRequest(tokens=PROMPT, sampling=sampling)
    batch = [Sequence(id=i, request=request, deliver=lambda event: None) for i in range(len(logits))]
    cases: dict[str, Callable[[], object]] = {
        f"{name}, plain": lambda: [_plainly(row, sampling) for row in logits],
        name: lambda: sampler.pick(logits, batch),
    }
    found = harness.alternate(cases, given.rounds, warm_up=2)
    per_row = {
        how: [harness.Sample(each.wall_s / len(logits), each.cpu_s / len(logits)) for each in samples]
        for how, samples in found.items()
    }
    return [replace(row, unit="ms/row") for row in harness.rows(what, per_row, f"{name}, plain")]


def _plainly(row: torch.Tensor, sampling: Sampling) -> tuple[int, object]:
    shaped = row
    if sampling.penalises:
        seen = torch.zeros(SIZE, dtype=torch.bool)
        seen[list(PROMPT)] = True
        factor = sampling.repetition_penalty
        shaped = torch.where(seen, torch.where(row > 0, row / factor, row * factor), row)
        shaped = shaped - sampling.presence_penalty * (torch.zeros(SIZE) > 0)
    token = int(shaped.argmax()) if sampling.greedy else drawn(shaped, sampling, float(torch.rand(())))
    return token, None if sampling.logprobs is None else row.log_softmax(dim=0).topk(sampling.logprobs)


def _logits(kind: str, rows: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(1)
    if kind == "flat":
        return 3 * torch.randn(rows, SIZE, generator=chance)
    logits = 1.5 * torch.randn(rows, SIZE, generator=chance)
    for row in logits:
        row[torch.randperm(SIZE, generator=chance)[:60]] += torch.linspace(16, 6, 60)
    return logits


if __name__ == "__main__":
    main()
