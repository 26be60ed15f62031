"""What do a grammar and the other sampling options cost a token, against the decode step that they follow?

Once with the phantom, whole: its decode step is the baseline. Once at MedGemma's 262,144 tokens, on random
logits: there the baseline is the output layer of a 270M model alone (640 numbers to 262,144 in bfloat16). All in
one thread of the CPU. The grammar is the nested schema of ``grammar_libraries``. "mask" is the allowed tokens
alone, at the answer's beginning; "pick" is all from logits to token, and with a grammar it takes the token in too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import torch
from grammar_libraries import EOS, SCHEMA, SIZE, Vocabulary

from medport.wire.chat import Message
from medport_local import phantom
from medport_local.engine.grammar import Grammar, Grammars
from medport_local.engine.loading import load_gemma, use_one_thread
from medport_local.engine.prompt import PromptBuilder
from medport_local.engine.runner import Runner
from medport_local.engine.sampler import Sampler
from medport_local.engine.scheduler import Batch
from medport_local.engine.sequence import GenerationRequest, Sampling, Sequence
from medport_local.snapshot import open_snapshot

RESTART = 100


class Row:
    """One sequence that picks token after token, and begins anew when its answer is over."""

    def __init__(self, logits: Callable[[], torch.Tensor], eos_ids: frozenset[int], **sampling: Any) -> None:
        self._logits = logits
        self._sampler = Sampler(eos_ids)
        self._request = GenerationRequest(
            tokens=tuple(range(3, 300)), sampling=Sampling(max_tokens=RESTART, **sampling)
        )
        self._number = 0
        self._begin()

    def prepare(self) -> None:
        """The next logits, which the time does not count."""
        self._next = self._logits()

    def pick(self) -> None:
        (choice,) = self._sampler.pick(self._next, [self._sequence])
        assert not isinstance(choice, Exception)
        self._sequence.generated.append(choice.token)
        if choice.complete or len(self._sequence.generated) >= RESTART:
            self._sampler.forget(self._sequence)
            self._begin()

    def _begin(self) -> None:
        self._number += 1
        self._sequence = Sequence(id=self._number, request=self._request, deliver=lambda event: None)


def main() -> None:
    given = harness.arguments(__doc__, rounds=300)
    table = [*_with_the_phantom(given.rounds), *_at_full_size(given.rounds)]
    harness.report(__doc__, table, given.json)


def _with_the_phantom(rounds: int) -> list[harness.Row]:
    use_one_thread()
    snapshot = open_snapshot(phantom.weights_dir("medgemma"))
    gemma = load_gemma(snapshot)
    prompts = PromptBuilder(gemma, model_id="phantom", max_context=snapshot.max_context, max_images=1)
    tokens = prompts.build([Message(role="user", content="Describe this X-ray.")])
    request = GenerationRequest(tokens=tokens, sampling=Sampling(max_tokens=1))
    sequence = Sequence(id=1, request=request, deliver=lambda event: None)
    runner = Runner(gemma)
    logits = runner.forward(Batch("prefill", (sequence,)))
    sequence.generated.append(int(logits.argmax()))
    grammars = Grammars(
        gemma.text.pieces(), gemma.text.encode, eos_ids=gemma.eos_ids, control_ids=gemma.text.control_ids
    )
    cases: dict[str, Callable[[], object]] = {"decode step": lambda: runner.forward(Batch("decode", (sequence,)))}
    return _measured("phantom", cases, "decode step", logits, grammars.json_schema(SCHEMA), gemma.eos_ids, rounds)


def _at_full_size(rounds: int) -> list[harness.Row]:
    vocabulary = Vocabulary()
    grammars = Grammars(vocabulary.tokens, vocabulary, eos_ids=frozenset({EOS}), control_ids=frozenset({0, 1, 2}))
    head = torch.randn(SIZE, 640, dtype=torch.bfloat16)
    hidden = torch.randn(640, dtype=torch.bfloat16)
    cases: dict[str, Callable[[], object]] = {"output layer alone": lambda: head @ hidden}
    logits = 3 * torch.randn(1, SIZE, generator=torch.Generator().manual_seed(1))
    grammar = grammars.json_schema(SCHEMA)
    return _measured(f"{SIZE:,} tokens", cases, "output layer alone", logits, grammar, frozenset({EOS}), rounds)


def _measured(
    what: str,
    cases: dict[str, Callable[[], object]],
    baseline: str,
    logits: torch.Tensor,
    grammar: Grammar,
    eos_ids: frozenset[int],
    rounds: int,
) -> list[harness.Row]:
    def fresh() -> torch.Tensor:
        return logits[:, torch.randperm(logits.shape[1])]

    drawn = {"temperature": 1.0, "seed": 1}
    options: dict[str, dict[str, Any]] = {
        "pick, greedy": {},
        "pick, greedy, grammar": {"grammar": grammar},
        "pick, drawn": drawn,
        "pick, drawn, top_p 0.95": {**drawn, "top_p": 0.95},
        "pick, drawn, top_p 0.95, grammar": {**drawn, "top_p": 0.95, "grammar": grammar},
        "pick, drawn, top_k 64": {**drawn, "top_k": 64},
        "pick, greedy, penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.5},
        "pick, greedy, 20 logprobs": {"logprobs": 20},
    }
    walker = grammar.start()
    cases["mask"] = walker.allowed
    walks = [Row(fresh, eos_ids, **given) for given in options.values()]
    cases.update({name: walk.pick for name, walk in zip(options, walks, strict=True)})
    samples = _alternate(cases, walks, rounds)
    return harness.rows(what, samples, baseline)


def _alternate(
    cases: dict[str, Callable[[], object]], walks: list[Row], rounds: int
) -> dict[str, list[harness.Sample]]:
    samples: dict[str, list[harness.Sample]] = {name: [] for name in cases}
    for i in range(rounds + 1):
        for walk in walks:
            walk.prepare()
        for name, found in harness.alternate(cases, 1, warm_up=0).items():
            if i:
                samples[name] += found
    return samples


if __name__ == "__main__":
    main()
