"""What is measured: commands to a worker, and the figures that their answers give."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_PROMPT = 64
"""Tokens before a decode measurement: long enough to be a prompt, short enough to cost no attention."""
STEPS = 16
"""Decode steps of one measurement."""


@dataclass(frozen=True, slots=True)
class Task:
    """One command, done by every engine that can, once a round."""

    what: str
    do: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Without the seed, which each round has its own of."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Values of one kind that one command gave."""

    what: str
    unit: str
    values: tuple[float, ...]


def decode_tasks(batches: Iterable[int], *, steps: int = STEPS) -> list[Task]:
    """Tokens a second while so many answers are written side by side, and the time between their tokens."""
    return [
        Task(f"decode, batch {batch}", "decode", {"batch": batch, "prompt": _PROMPT, "tokens": steps})
        for batch in batches
    ]


def prefill_tasks(lengths: Iterable[int]) -> list[Task]:
    """Tokens a second of one prompt, which is also its time to first token."""
    return [Task(f"prefill {length}", "prefill", {"length": length}) for length in lengths]


def mixed_task(requests: int, *, mean_gap_s: float, seed: int = 0) -> Task:
    """Requests of 32 to 512 tokens that want 16 to 96 tokens, as a Poisson process."""
    source = random.Random(seed)  # noqa: S311  nothing secret
    arrivals = [0.0]
    while len(arrivals) < requests:
        arrivals.append(arrivals[-1] + source.expovariate(1 / mean_gap_s))
    prompts = [round(32 * 16 ** source.random()) for _ in arrivals]
    answers = [source.randint(16, 96) for _ in arrivals]
    return Task("mixed", "serve", {"arrivals": arrivals, "prompts": prompts, "answers": answers})


def image_tasks(count: int, *, family: str) -> list[Task]:
    """Images a second: MedSigLIP's embeddings, or what MedGemma's tower takes."""
    do = "embed_images" if family == "medsiglip" else "encode_images"
    return [Task(f"{'embed' if family == 'medsiglip' else 'encode'} images", do, {"count": count})]


def second_question_task(question: int = 24) -> Task:
    """Two questions about one image; only medport can keep what it saw."""
    return Task("question about an image", "second_question", {"question": question})


def stall_task(streams: int, prompt: int) -> Task:
    """How long answers that are being written wait for each other's prompts."""
    return Task("stall", "stall", {"streams": streams, "prompt": prompt})


def figures(task: Task, answer: Any) -> list[Figure]:
    """What a worker's answer says."""
    given = task.arguments
    match task.do:
        case "decode":
            rate = given["batch"] * len(answer) / sum(answer)
            between = Figure(f"between tokens, batch {given['batch']}", "ms", _ms(answer))
            return [Figure(task.what, "tokens/s", (rate,)), between]
        case "prefill":
            return [
                Figure(task.what, "tokens/s", (given["length"] / answer,)),
                Figure(f"first token of {given['length']}", "ms", _ms([answer])),
            ]
        case "serve":
            arrivals = given["arrivals"]
            rate = sum(given["answers"]) / (max(answer["done"]) - arrivals[0])
            first = [at - arrival for at, arrival in zip(answer["first"], arrivals, strict=True)]
            done = [at - arrival for at, arrival in zip(answer["done"], arrivals, strict=True)]
            return [
                Figure(task.what, "tokens/s", (rate,)),
                Figure(f"{task.what}, first token", "ms", _ms(first)),
                Figure(f"{task.what}, whole answer", "ms", _ms(done)),
            ]
        case "encode_images" | "embed_images":
            return [Figure(task.what, "images/s", (given["count"] / answer,))]
        case "second_question":
            first, second = answer["first"], answer["second"]
            return [
                Figure("first question", "ms", _ms([first])),
                Figure("second question", "ms", _ms([second])),
                Figure("second / first", "ratio", (second / first,)),
            ]
        case "stall":
            return [
                Figure("between tokens, alone", "ms", _ms(answer["alone"])),
                Figure("between tokens, stalled", "ms", _ms(answer["during"])),
                Figure("first token, among others", "ms", _ms(answer["prefill"])),
            ]
    raise AssertionError(task.do)


def _ms(seconds: Sequence[float]) -> tuple[float, ...]:
    return tuple(1e3 * each for each in seconds)
