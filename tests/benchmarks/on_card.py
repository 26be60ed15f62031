"""What does the engine do on this card, and what does transformers do there on the same weights?

Random weights of the Gemma-3-4B shape with its so400m image tower, and of MedSigLIP's: speed does not depend on
what weights say. Everything runs in one process, the rivals in turn, medians of at least five. vLLM is not here:
it needs a process and packages of its own (``engine_speed``).

--shape toy takes shapes of a few megabytes, to try the program where there is no card. --only takes some of the
pieces. What is checked and not only measured: greedy tokens of the phantom in float32 against transformers' own,
and the argmax of bfloat16 logits where both are given the same tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipConfig, SiglipModel

from medport_local import phantom
from medport_local.engine import devices, vectors
from medport_local.engine.blocks import Memory
from medport_local.engine.decoder import Decoder
from medport_local.engine.engine import image_blocks
from medport_local.engine.kvcache import KvCache
from medport_local.engine.loading import Gemma, Siglip, load_gemma
from medport_local.engine.packing import by_rows, pack
from medport_local.engine.reference import Reference
from medport_local.engine.runner import Runner
from medport_local.engine.sampler import Choice, Sampler
from medport_local.engine.scheduler import Batch
from medport_local.engine.sequence import GenerationRequest, Sampling
from medport_local.engine.sequence import Sequence as Running
from medport_local.snapshot import open_snapshot

TOKENS = {"vocab_size": 262_208, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
SOFT_TOKENS = {"4b": 262_144, "toy": 2047}
SHAPES: dict[str, dict[str, Any]] = {
    "4b": {
        **TOKENS,
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 1024,
        "max_position_embeddings": 131_072,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
        },
    },
    "toy": {
        **TOKENS,
        "vocab_size": 2048,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 64,
        "max_position_embeddings": 131_072,
    },
}
TOWERS: dict[str, dict[str, Any]] = {
    "4b": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "toy": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 224,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
CONTEXTS = {"4b": (512, 8192), "toy": (96,)}
PREFILLS = {"4b": (512, 2048, 8192), "toy": (96,)}
BATCHES = (1, 4, 16, 64)
IMAGES_AT_ONCE = (1, 8, 32, 64)
STEPS = ("kernels", "torch", "plain")
"""A recorded step on kernels of ours, a recorded one on torch's, and one that is launched part by part."""
PIECES = ("facts", "phantom", "agree", "sdpa", "decode", "prefill", "image", "siglip")
ROUNDS = 5


@dataclass
class Bench:
    """The device, what was found on it, and how to time there."""

    device: torch.device
    shape: str
    rounds: int
    found: dict[str, Any]

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], *, rounds: int | None = None, warm_up: int = 2) -> float:
        """Median of the wall time of ``work``."""
        times = []
        for i in range(warm_up + (rounds or self.rounds)):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            if i >= warm_up:
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    def say(self, piece: str, name: str, value: object) -> None:
        """Keep a figure, and print it."""
        self.found.setdefault(piece, {})[name] = value
        print(f"{piece:8} {name:58} {value:.4g}" if isinstance(value, float) else f"{piece:8} {name:58} {value}",
              flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pieces = lambda text: [each for each in text.split(",") if each]  # noqa: E731
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=SHAPES, default="4b")
    parser.add_argument("--only", type=pieces, default=list(PIECES), help=f"of {','.join(PIECES)}; default all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, default=Path("out/benchmarks/on_card.json"))
    parser.add_argument("--no-rival", action="store_true", help="leave transformers out of the speeds")
    given = parser.parse_args()
    if not set(given.only) <= set(PIECES):
        parser.error("--only names what there is not")
    bench = Bench(torch.device(given.device), given.shape, given.rounds, {})
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    for piece in given.only:
        began = time.perf_counter()
        PROGRAM[piece](bench, not given.no_rival)
        bench.say(piece, "seconds", time.perf_counter() - began)
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(bench.found, indent=1) + "\n")


# The models, and the runner by hand.


_gemmas: dict[str, Gemma] = {}


def gemma_of(bench: Bench) -> Gemma:
    """Random weights in bfloat16, made on the device; the same for all pieces."""
    if bench.shape not in _gemmas:
        config = Gemma3Config(
            text_config=SHAPES[bench.shape], vision_config=TOWERS[bench.shape], mm_tokens_per_image=256,
            boi_token_index=255_999, eoi_token_index=256_000, image_token_index=SOFT_TOKENS[bench.shape],
            tie_word_embeddings=True, eos_token_id=[1, 106],
        )  # fmt: skip
        model: Any = _built(Gemma3ForConditionalGeneration, config, bench.device, torch.bfloat16)
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(0, 0.03)
        model.generation_config.eos_token_id = None
        nothing: Any = object()  # neither texts nor pictures are coded here
        _gemmas[bench.shape] = Gemma(
            model, nothing, nothing, 256, SOFT_TOKENS[bench.shape], frozenset([1]), bench.device
        )
    return _gemmas[bench.shape]


def _built(model_class: Any, config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = model_class(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


class Own:
    """The runner with memory of its own, and a sampler."""

    def __init__(self, gemma: Gemma, *, slots: int, context: int, steps: str = "kernels", **options: Any) -> None:
        decoder = Decoder.of(gemma)
        self.memory = Memory(slots=slots, tokens=slots * (-(-context // 64) * 64))
        self.cache = KvCache(
            decoder.shape, slots=slots, tokens=self.memory.capacity, window=decoder.shape.window,
            dtype=decoder.dtype, device=decoder.device,
        )  # fmt: skip
        self.runner = Runner(
            gemma, decoder, self.cache, lambda each: self.memory.lease(each.id), stall_s=60.0, **options
        )
        if steps == "plain":
            self.runner._graphs = None
        elif steps == "torch" and self.runner._graphs is not None:
            self.runner._graphs._fused = False
        self.runner.warm()
        self.decoder = decoder
        self.sampler = Sampler()
        self.token_id = gemma.image_token_id
        self._ids = itertools.count()
        self._draw = np.random.default_rng(0)

    def fill(self) -> None:
        """Put random numbers where keys and values would be, in place of computing them."""
        self.cache._rings.normal_()
        self.cache._arena.normal_()

    def begin(self, tokens: Sequence[int], images: Sequence[Any] = (), room: int = 64) -> Running:
        request = GenerationRequest(
            tokens=tuple(tokens), images=tuple(images), sampling=Sampling(max_tokens=room, ignore_eos=True)
        )
        running = Running(
            id=next(self._ids), request=request, deliver=lambda event: None,
            image_blocks=image_blocks(request.tokens, self.token_id),
        )  # fmt: skip
        assert self.memory.reserve(running.id, len(tokens) + room) is not None
        running.computed = self.runner.restore(running)
        return running

    def end(self, *all_running: Running) -> None:
        for running in all_running:
            self.runner.release(running)
            self.memory.release(running.id)

    def drawn(self, length: int) -> list[int]:
        return [int(token) for token in self._draw.integers(1000, 2000, length)]

    def prefill(self, running: Running, chunk: int | None = None) -> Tensor:
        while running.encoded < len(running.request.images):
            self.runner.run(Batch("encode", (running,)))
        start, end = running.computed or 0, running.prompt_tokens
        logits = None
        while start < end or logits is None:
            stop = min(end, start + (chunk or end))
            logits = self.runner.run(Batch("prefill", (running,), start, stop))
            start = stop
        assert logits is not None
        return logits

    def step(self, all_running: Sequence[Running]) -> None:
        batch = Batch("decode", tuple(all_running))
        logits = self.runner.run(batch)
        assert logits is not None
        for running, choice in zip(all_running, self.sampler.pick(logits, all_running), strict=True):
            assert isinstance(choice, Choice)
            running.generated.append(choice.token)


# The pieces.


def facts(bench: Bench, rival: bool) -> None:
    """What is this card, and how fast is its memory?"""
    bench.say("facts", "torch", torch.__version__)
    if bench.device.type == "cuda":
        bench.say("facts", "card", torch.cuda.get_device_name(bench.device))
    size = 2**30 if bench.device.type == "cuda" else 2**26
    one = torch.randn(size // 4, device=bench.device)
    two = torch.empty_like(one)
    bench.say("facts", "copy, GB/s read and written", 2 * size / bench.seconds(lambda: two.copy_(one)) / 1e9)
    bench.say("facts", "sum, GB/s read", size / bench.seconds(one.sum) / 1e9)


def phantom_equality(bench: Bench, rival: bool) -> None:
    """Greedy tokens in float32, alone and eight together, are those of transformers."""
    gemma = load_gemma(open_snapshot(phantom.weights_dir("medgemma")), device=str(bench.device))
    assert gemma.images is not None
    side = gemma.images.side_px
    draw = np.random.default_rng(1)
    prompts = []
    for images, words in ((0, 20), (1, 10), (3, 30), (0, 400), (1, 200), (2, 5), (0, 127), (0, 128)):
        texts = [draw.integers(110, 400, words).tolist() for _ in range(images + 1)]
        soft = [gemma.image_token_id] * gemma.image_tokens
        tokens = [2, *texts[0], *itertools.chain.from_iterable([*soft, *each] for each in texts[1:])]
        pictures = [draw.uniform(-1, 1, (3, side, side)).astype(np.float32) for _ in range(images)]
        prompts.append((tokens, pictures))
    own = Own(gemma, slots=8, context=1024)
    expected = [
        Reference(gemma, GenerationRequest(tokens=tuple(tokens), images=tuple(pictures),
                                           sampling=Sampling(max_tokens=32))).greedy(32)
        for tokens, pictures in prompts
    ]  # fmt: skip
    for chunk in (None, 16):
        all_running = [own.begin(*each) for each in prompts]
        for running in all_running:
            step = None if running.image_blocks else chunk
            (choice,) = own.sampler.pick(own.prefill(running, step), [running])
            assert isinstance(choice, Choice)
            running.generated.append(choice.token)
        for _ in range(31):
            own.step(all_running)
        same = sum(running.generated == each for running, each in zip(all_running, expected, strict=True))
        bench.say("phantom", f"sequences of 8 as transformers', chunk {chunk}", same)
        own.end(*all_running)


def agree(bench: Bench, rival: bool) -> None:
    """bfloat16, the same tokens given to both: how often is the most likely token the same?"""
    gemma = gemma_of(bench)
    length, steps, count = PREFILLS[bench.shape][0], 24, 4
    own = Own(gemma, slots=count, context=length + 64)
    all_running = [own.begin(own.drawn(length)) for _ in range(count)]
    mine = [[own.prefill(running)[0]] for running in all_running]
    forced = [own.drawn(steps) for _ in range(count)]
    for i in range(steps):
        for running, tokens in zip(all_running, forced, strict=True):
            running.generated.append(tokens[i])
        logits = own.runner.run(Batch("decode", tuple(all_running)))
        assert logits is not None
        for rows, row in zip(mine, logits, strict=True):
            rows.append(row)
    same = ties = total = 0
    worst = 0.0
    for running, rows, tokens in zip(all_running, mine, forced, strict=True):
        reference = Reference(gemma, running.request)
        expected = torch.stack([reference.prefill(), *(reference.decode(token) for token in tokens)])
        made = torch.stack(rows)
        best = expected.max(dim=-1).values
        chosen = expected.gather(1, made.argmax(-1, keepdim=True))[:, 0]
        same += int((made.argmax(-1) == expected.argmax(-1)).sum())
        ties += int((chosen >= best - best.abs() * 2**-7).sum())
        total += len(rows)
        worst = max(worst, float((made - expected).norm() / expected.norm()))
    bench.say("agree", f"same argmax of {total}", same)
    bench.say("agree", f"same, or a tie within bfloat16's step, of {total}", ties)
    bench.say("agree", "largest relative difference of logits", worst)
    own.end(*all_running)


def sdpa(bench: Bench, rival: bool) -> None:
    """Which of torch's attentions takes the shapes of a step and of a chunk, and how fast?"""
    shape = Decoder.of(gemma_of(bench)).shape
    heads, kv_heads, dim, window = shape.heads, shape.kv_heads, shape.head_dim, shape.window
    new = lambda *size: torch.randn(size, dtype=torch.bfloat16, device=bench.device)  # noqa: E731
    seen = torch.rand(4, 1, 1, window, device=bench.device) > 0.1
    long = CONTEXTS[bench.shape][-1]
    causal = torch.ones(512, long, dtype=torch.bool, device=bench.device).tril(long - 512)
    group = heads // kv_heads
    cases: dict[str, tuple[Tensor, Tensor, Tensor | None, bool]] = {
        "step, 4 rows, ring, no mask": (new(4, kv_heads, group, dim), new(4, kv_heads, window, dim), None, False),
        "step, 4 rows, ring, mask": (new(4, kv_heads, group, dim), new(4, kv_heads, window, dim), seen, False),
        f"step, run of {long}": (new(1, kv_heads, group, dim), new(1, kv_heads, long, dim), None, False),
        f"chunk, 512 of {long}, mask, grouped": (
            new(1, heads, 512, dim),
            new(1, kv_heads, long, dim),
            causal,
            True,
        ),
        f"chunk, 512 of {long}, mask, repeated": (
            new(1, heads, 512, dim),
            new(1, heads, long, dim),
            causal,
            False,
        ),
    }
    for name, (q, k, mask, grouped) in cases.items():
        run = lambda q=q, k=k, mask=mask, grouped=grouped: F.scaled_dot_product_attention(  # noqa: E731
            q, k, k, attn_mask=mask, enable_gqa=grouped
        )
        bench.say("sdpa", f"{name}: by itself, us", 1e6 * bench.seconds(run))
        for backend in (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION,
                        SDPBackend.CUDNN_ATTENTION):  # fmt: skip
            try:
                with sdpa_kernel([backend]):
                    bench.say("sdpa", f"{name}: {backend.name}, us", 1e6 * bench.seconds(run))
            except RuntimeError:
                bench.say("sdpa", f"{name}: {backend.name}", "refuses")


def decode(bench: Bench, rival: bool) -> None:
    """Tokens a second while so many answers are written side by side."""
    gemma = gemma_of(bench)
    bandwidth = bench.found.get("facts", {}).get("copy, GB/s read and written")
    for context, steps in itertools.product(CONTEXTS[bench.shape], STEPS):
        began = time.perf_counter()
        own = Own(gemma, slots=max(BATCHES), context=context + 256, steps=steps)
        bench.say("decode", f"context {context}, {steps}, made and warmed, s", time.perf_counter() - began)
        graphs = own.runner._graphs
        if graphs is not None:
            bench.say("decode", f"context {context}, {steps}, recordings, MB", graphs.nbytes / 1e6)
            bench.say("decode", f"context {context}, {steps}, our kernels", graphs.fused)
        own.fill()
        for batch in BATCHES if steps == "kernels" else (1, 16):
            name = f"context {context}, batch {batch}, {steps}"
            all_running = [own.begin(own.drawn(context), room=256) for _ in range(batch)]
            for running in all_running:
                running.generated.append(1000)
            for _ in range(3):
                own.step(all_running)
            rounds = 25 if steps != "plain" else 9
            step_s = bench.seconds(lambda own=own, each=all_running: own.step(each), rounds=rounds)
            bench.say("decode", f"{name}, tokens/s", batch / step_s)
            if batch == 1:
                rate = own.decoder.step_bytes / step_s / 1e9
                bench.say("decode", f"{name}, weights read, GB/s", rate)
                if bandwidth:
                    bench.say("decode", f"{name}, percent of bandwidth", 100 * rate / bandwidth)
            if batch == 1 and steps == "kernels" and bench.device.type == "cuda":
                _profile(bench, name, lambda own=own, each=all_running: own.step(each))
            own.end(*all_running)
            if rival and steps == "kernels" and batch * context <= 4 * 8192:
                theirs = _generate_rate(bench, gemma, [own.drawn(context) for _ in range(batch)], 24)
                bench.say("decode", f"context {context}, batch {batch}, transformers, tokens/s", theirs)
                bench.say("decode", f"context {context}, batch {batch}, ratio", batch / step_s / theirs)
        own.memory, own.cache, own.runner = None, None, None  # type: ignore[assignment]
        del own, graphs


def _generate_rate(bench: Bench, gemma: Gemma, prompts: list[list[int]], tokens: int) -> float:
    stamps: list[float] = []

    def stamp(ids: Any, logits: Any) -> Any:
        bench.wait()
        stamps.append(time.perf_counter())
        return logits

    ids = torch.tensor(prompts, device=bench.device)
    for _ in range(2):  # the first one warms up
        stamps.clear()
        # Left to itself torch plans cuDNN's attention anew for each length: the rival need not pay for that.
        with devices.attention(bench.device):
            gemma.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                logits_processor=[stamp],
            )
    return len(prompts) / statistics.median(b - a for a, b in itertools.pairwise(stamps))


def _profile(bench: Bench, name: str, work: Callable[[], object]) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        work()
        bench.wait()
    kernels = [each for each in profiler.key_averages() if each.self_device_time_total > 0]
    bench.say("decode", f"{name}, kernels of a step", sum(each.count for each in kernels))
    bench.say("decode", f"{name}, device time, ms", sum(each.self_device_time_total for each in kernels) / 1e3)
    for each in sorted(kernels, key=lambda each: -each.self_device_time_total)[:14]:
        bench.say("decode", f"  {each.key[:44]} x{each.count}, ms", each.self_device_time_total / 1e3)


def prefill(bench: Bench, rival: bool) -> None:
    """Tokens a second of one prompt; its time is also that to the first token."""
    gemma = gemma_of(bench)
    for length in PREFILLS[bench.shape]:
        own = Own(gemma, slots=1, context=length + 64)
        tokens = own.drawn(length)
        ids = torch.tensor([tokens], device=bench.device)

        def mine(chunk: int | None, own: Own = own, tokens: list[int] = tokens) -> None:
            running = own.begin(tokens)
            own.prefill(running, chunk)
            own.end(running)

        def theirs(ids: Tensor = ids) -> None:
            gemma.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0
            )

        rate = length / bench.seconds(lambda mine=mine: mine(None))
        bench.say("prefill", f"{length}, own, tokens/s", rate)
        if length > 2048:
            chunked = length / bench.seconds(lambda mine=mine: mine(1024))
            bench.say("prefill", f"{length} in chunks of 1024, own, tokens/s", chunked)
        if rival:
            with torch.inference_mode():
                other = length / bench.seconds(theirs)
            bench.say("prefill", f"{length}, transformers, tokens/s", other)
            bench.say("prefill", f"{length}, ratio", rate / other)
        del own


def image(bench: Bench, rival: bool) -> None:
    """Time to the first token of two questions about one image, with what was seen kept and without."""
    gemma = gemma_of(bench)
    side = TOWERS[bench.shape]["image_size"]
    draw = np.random.default_rng(3)
    for reuses in (False, True):
        own = Own(gemma, slots=2, context=1024, reuses=reuses, shared_bytes=2**31 if reuses else 0)
        times: list[list[float]] = [[], []]
        for _ in range(bench.rounds + 1):
            pixels = draw.uniform(-1, 1, (3, side, side)).astype(np.float32)
            for asked in times:
                tokens = [2, *own.drawn(6), *[SOFT_TOKENS[bench.shape]] * 256, *own.drawn(24)]
                tokens[1:7] = [1000] * 6  # the beginning is the same, the question another
                began = time.perf_counter()
                running = own.begin(tokens, [pixels])
                own.sampler.pick(own.prefill(running), [running])
                asked.append(time.perf_counter() - began)
                own.end(running)
        kept = "kept" if reuses else "not kept"
        for name, asked in zip(("first", "second"), times, strict=True):
            bench.say("image", f"{name} question, {kept}, ms", 1e3 * statistics.median(asked[1:]))
    if rival:
        pixel_values = torch.rand(1, 3, side, side, dtype=torch.bfloat16, device=bench.device)
        with torch.inference_mode():
            tower = bench.seconds(lambda: gemma.model.model.get_image_features(pixel_values))
        bench.say("image", "transformers' tower and projector, ms", 1e3 * tower)


def siglip(bench: Bench, rival: bool) -> None:
    """MedSigLIP's images a second, and how far bfloat16 is from float32."""
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    if bench.shape == "toy":
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": 32_000, "max_position_embeddings": 64},
        vision_config={**tower, "image_size": 448, "patch_size": 14},
    )
    model = _built(SiglipModel, config, bench.device, torch.float32)
    draw = np.random.default_rng(5)
    pictures = [draw.uniform(-1, 1, (3, 448, 448)).astype(np.float32) for _ in range(max(IMAGES_AT_ONCE))]
    nothing: Any = object()
    found: dict[str, Tensor] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        by_rows(model)
        model.to(dtype)
        pack(model)
        one = Siglip(model, nothing, nothing, 0.0, 0.0, bench.device)
        found[name] = vectors.of_images(one, pictures[:8])
        for count in IMAGES_AT_ONCE:
            if bench.shape == "toy" and count > 8:
                continue
            seconds = bench.seconds(
                lambda one=one, count=count: vectors.of_images(one, pictures[:count]), warm_up=1
            )
            bench.say("siglip", f"{name}, {count} at once, images/s", count / seconds)
            if bench.device.type == "cuda" and count == 32:
                pixels = torch.rand(count, 3, 448, 448, dtype=dtype, device=bench.device)
                with torch.inference_mode():
                    seconds = bench.seconds(
                        lambda pixels=pixels: model.get_image_features(pixel_values=pixels), warm_up=1
                    )
                bench.say("siglip", f"{name}, {count} at once, pixels on the card, images/s", count / seconds)
    cosines = (found["float32"] * found["bfloat16"]).sum(-1)
    bench.say("siglip", "least cosine of bfloat16 and float32", float(cosines.min()))


PROGRAM: dict[str, Callable[[Bench, bool], None]] = {
    "facts": facts,
    "phantom": phantom_equality,
    "agree": agree,
    "sdpa": sdpa,
    "decode": decode,
    "prefill": prefill,
    "image": image,
    "siglip": siglip,
}

if __name__ == "__main__":
    main()
