"""Logits → tokens: each option against another's or a written-out computation."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from medport_local.engine.distribution import distribution
from medport_local.engine.sampler import Choice, Sampler
from medport_local.engine.sequence import GenerationRequest, Sampling, Sequence

VOCABULARY = 60
EOS = 1


def row(
    number: int, tokens: tuple[int, ...] = (1,), generated: tuple[int, ...] = (), **sampling: object
) -> Sequence:
    options: dict[str, object] = {"max_tokens": 1000, **sampling}
    request = GenerationRequest(tokens=tokens, sampling=Sampling(**options))  # type: ignore[arg-type]
    return Sequence(id=number, request=request, deliver=lambda event: None, generated=list(generated))


def pick(sampler: Sampler, logits: torch.Tensor, *rows: Sequence) -> list[Choice]:
    choices = sampler.pick(logits, rows)
    assert all(isinstance(choice, Choice) for choice in choices)
    return choices  # type: ignore[return-value]


def tokens_of(sampler: Sampler, sequence: Sequence, logits: list[torch.Tensor]) -> list[int]:
    """One token for each row of logits, as the engine would go on."""
    for each in logits:
        sequence.generated.append(pick(sampler, each[None], sequence)[0].token)
    return sequence.generated


def noise(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def kept(logits: torch.Tensor, **sampling: object) -> list[int]:
    options: dict[str, object] = {"max_tokens": 1, "temperature": 1.0, **sampling}
    return distribution(logits, Sampling(**options))[1].tolist()  # type: ignore[arg-type]


def test_top_k_top_p_and_min_p_keep_the_likeliest() -> None:
    logits = torch.tensor([0.3, 0.5, 0.05, 0.15]).log()

    assert kept(logits) == [0, 1, 2, 3]
    assert kept(logits, top_k=2) == [1, 0]
    assert kept(logits, top_k=1_000_000) == [0, 1, 2, 3]
    assert kept(logits, top_p=0.79) == [1, 0]
    assert kept(logits, top_p=0.81) == [1, 0, 3]
    assert kept(logits, top_p=1e-9) == [1]
    assert kept(logits, min_p=0.29) == [0, 1, 3]
    assert kept(logits, min_p=0.31) == [0, 1]
    assert kept(logits, min_p=1.0) == [1]
    # Min-p is the first, and top-p takes its share of what is left: 0.625 and 0.375.
    assert kept(logits, min_p=0.31, top_p=0.62) == [1]
    assert kept(logits, top_p=0.62) == [1, 0]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(0, 0.9, 0), (7, 0.8, 0), (0, 0.5, 0.01), (20, 1, 0.05)])
def test_shortcuts_keep_what_the_plain_definition_keeps(seed: int, top_k: int, top_p: float, min_p: float) -> None:
    logits = noise(seed)[0]

    found, tokens = distribution(
        logits, Sampling(max_tokens=1, temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
    )

    shares = (logits.double() / 0.7).softmax(0)
    likely = sorted(range(VOCABULARY), key=lambda i: -shares[i])
    likely = [i for i in likely if shares[i] >= min_p * shares.max()][: top_k or None]
    total, run, expected = sum(float(shares[i]) for i in likely), 0.0, []
    for i in likely:
        if run < top_p or not expected:
            expected.append(i)
        run += float(shares[i]) / total
    assert set(tokens.tolist()) == set(expected)
    whole = sum(float(shares[i]) for i in expected)
    for share, token in zip(found.tolist(), tokens.tolist(), strict=True):
        assert share == pytest.approx(float(shares[token]) / whole)


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler()
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    drawn = row(1, temperature=1.0, seed=3)

    counts = torch.bincount(
        torch.tensor([pick(sampler, logits, drawn)[0].token for _ in range(2000)]), minlength=3
    )

    assert torch.allclose(counts / 2000, torch.tensor([0.7, 0.2, 0.1]), atol=0.04)


def test_row_draws_the_same_whatever_stands_beside_it() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))

    alone, crowded = Sampler(), Sampler()
    first = [pick(alone, logits[:1], row(1, temperature=1.0, seed=9))[0].token for _ in range(9)]
    others = [row(2, temperature=1.0, seed=1, presence_penalty=1.5), row(3)]
    second = [pick(crowded, logits, row(1, temperature=1.0, seed=9), *others)[0].token for _ in range(9)]

    assert first == second


def test_seed_gives_the_same_tokens_with_every_option() -> None:
    logits = list(noise(4, rows=40))
    options = {
        "temperature": 1.1, "top_p": 0.95, "top_k": 30, "min_p": 0.01, "presence_penalty": 0.4, "logprobs": 3,
        "frequency_penalty": 0.3, "repetition_penalty": 1.2, "logit_bias": ((5, 2.0),), "min_tokens": 9,
    }  # fmt: skip

    first, second, other = (
        tokens_of(Sampler(frozenset({EOS})), row(1, seed=seed, **options), logits) for seed in (11, 11, 12)
    )

    assert first == second
    assert first != other


def test_repetition_penalty_is_the_one_of_transformers() -> None:
    prompt = (3, 9, 9, 27)
    logits = list(noise(1, rows=25))
    penalty = RepetitionPenaltyLogitsProcessor(1.7)
    expected: list[int] = []
    for each in logits:
        ids = torch.tensor([[*prompt, *expected]])
        expected.append(int(penalty(ids, each[None].clone()).argmax()))  # type: ignore[no-untyped-call]

    found = tokens_of(Sampler(), row(1, prompt, repetition_penalty=1.7), logits)

    assert found == expected
    assert found != [int(each.argmax()) for each in logits], "the case must be one where it matters"


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 1.1), (0.7, 0.9), (-1.0, -0.5)])
def test_presence_and_frequency_penalties_are_the_documented_formula(presence: float, frequency: float) -> None:
    logits = list(noise(2).repeat(25, 1) + 0.3 * noise(3, rows=25))
    expected: list[int] = []
    for each in logits:
        # Only what was generated counts, not the prompt.
        values = [
            value - frequency * expected.count(token) - presence * (token in expected)
            for token, value in enumerate(each.tolist())
        ]
        expected.append(max(range(VOCABULARY), key=values.__getitem__))

    prompt = tuple(range(VOCABULARY))
    found = tokens_of(Sampler(), row(1, prompt, presence_penalty=presence, frequency_penalty=frequency), logits)

    assert found == expected
    assert found != [int(each.argmax()) for each in logits], "the case must be one where it matters"


def test_bias_comes_before_the_penalties() -> None:
    logits = torch.tensor([[1.0, 3.0, 0.0]])
    # Bias first: (1 + 5) / 2 = 3 is less than 3.5. Penalty first: 1 / 2 + 5 would be more.
    options = {"logit_bias": ((0, 5.0), (1, 0.5)), "repetition_penalty": 2.0}

    assert pick(Sampler(), logits, row(1, (0,), **options))[0].token == 1


def test_bias_forces_forbids_and_ignores_what_is_not_in_the_vocabulary() -> None:
    logits = noise(5)
    best = int(logits.argmax())

    assert pick(Sampler(), logits, row(1, logit_bias=((7, 100.0),)))[0].token == 7
    assert pick(Sampler(), logits, row(2, logit_bias=((best, -100.0),)))[0].token != best
    assert pick(Sampler(), logits, row(3, logit_bias=((10**6, 100.0), (-5, 100.0))))[0].token == best


def test_end_tokens_wait_for_min_tokens() -> None:
    logits = [torch.tensor([0.0, 9.0, 8.0, 1.0])] * 5
    sampler = Sampler(frozenset({EOS}))

    found = tokens_of(sampler, row(1, min_tokens=3, stop_token_ids=(2, 99)), logits)

    assert found == [3, 3, 3, EOS, EOS]


def test_logprobs_are_those_of_the_bare_logits() -> None:
    logits = noise(6)
    expected = logits[0].double().log_softmax(0)
    changed = row(1, (2,), temperature=0.3, seed=1, repetition_penalty=3.0, logit_bias=((4, 50.0),), logprobs=5)

    choice = pick(Sampler(), logits, changed)[0]

    assert choice.token == 4
    assert choice.logprob == pytest.approx(float(expected[4]), abs=1e-5)
    values, tokens = expected.topk(5)
    assert [token for token, _ in choice.top] == tokens.tolist()
    assert [value for _, value in choice.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_logprobs_of_more_tokens_than_there_are_is_all_of_them() -> None:
    choice = pick(Sampler(), noise(6), row(1, logprobs=VOCABULARY + 5))[0]

    assert len(choice.top) == VOCABULARY
    assert math.fsum(math.exp(value) for _, value in choice.top) == pytest.approx(1, abs=1e-5)
    assert pick(Sampler(), noise(6), row(1, logprobs=0))[0].top == ()


def test_choosing_leaves_the_logits_alone_and_forgetting_frees() -> None:
    logits = noise(7, rows=2)
    before = logits.clone()
    sampler = Sampler(frozenset({EOS}))
    rows = [
        row(1, (1, 2), repetition_penalty=2.0, presence_penalty=1, logit_bias=((3, 1.0),), min_tokens=2),
        row(2, temperature=1.0),
    ]

    pick(sampler, logits, *rows)

    assert torch.equal(logits, before)
    assert sampler.held == 2
    for each in rows:
        sampler.forget(each)
    assert sampler.held == 0


def test_vanishing_temperature_is_greedy() -> None:
    logits = noise(8)

    assert pick(Sampler(), logits, row(1, temperature=1e-30))[0].token == int(logits.argmax())
