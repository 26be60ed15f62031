"""Logits → tokens: each option against another's or a written-out computation."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from medport.errors import InputError, ServerError
from medport_local.engine import logprobs as logprobs_module
from medport_local.engine.distribution import NEVER, distribution
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


@pytest.mark.parametrize(
    "fault",
    [[math.nan], [math.inf], [math.nan, math.inf, NEVER], [NEVER] * VOCABULARY],
    ids=lambda given: str(given[0]),
)
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_row_without_numbers_fails_alone(fault: list[float], broken: int) -> None:
    logits = noise(9, rows=3)
    options = [{}, {"temperature": 1.0, "seed": 5, "logprobs": 2}, {"repetition_penalty": 1.3, "min_tokens": 2}]
    expected = [pick(Sampler(), logits[i : i + 1], row(i, **options[i]))[0] for i in range(3)]
    logits[broken, VOCABULARY - len(fault) :] = torch.tensor(fault)

    choices = Sampler().pick(logits, [row(i, **options[i]) for i in range(3)])

    assert isinstance(choices[broken], ServerError)
    assert "numbers that are none" in str(choices[broken])
    assert [each for i, each in enumerate(choices) if i != broken] == [
        each for i, each in enumerate(expected) if i != broken
    ]


def test_forbidden_tokens_are_no_fault() -> None:
    logits = torch.full((2, VOCABULARY), NEVER)
    logits[:, 17] = -3.0

    choices = pick(Sampler(), logits, row(1), row(2, temperature=1.0, seed=1, logprobs=1))

    assert [choice.token for choice in choices] == [17, 17]
    assert choices[1].top == ((17, 0.0),)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_penalty_that_leaves_no_number_is_the_callers_fault(temperature: float) -> None:
    logits = noise(3)
    penalised = row(1, tuple(range(VOCABULARY)), repetition_penalty=1e-60, temperature=temperature)

    (choice,) = Sampler().pick(logits, [penalised])

    assert isinstance(choice, InputError)
    assert choice.field == "repetition_penalty"


def test_end_may_come_early_if_nothing_else_is_left() -> None:
    logits = torch.full((1, 8), NEVER)
    logits[0, EOS] = 1.0

    assert pick(Sampler(frozenset({EOS})), logits, row(1, min_tokens=5))[0].token == EOS


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 20, "top_p": 0.95}, {"min_p": 0.05}])
def test_seed_means_one_uniform_number_a_token(options: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(77)
    logits = list(torch.randn(12, 9000, generator=torch.Generator().manual_seed(1)) * 2)
    expected = []
    for each in logits:
        shares, tokens = distribution(each, Sampling(max_tokens=1, temperature=0.8, **options))  # type: ignore[arg-type]
        point = torch.rand((), generator=generator, dtype=torch.float64)
        expected.append(int(tokens[int(torch.searchsorted(shares.cumsum(0), point, right=True))]))

    found = tokens_of(Sampler(), row(1, temperature=0.8, seed=77, **options), logits)

    assert found == expected


def test_seed_draws_the_same_whenever_others_join_and_leave() -> None:
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(2))
    alone = tokens_of(Sampler(), row(1, temperature=1.0, seed=5, frequency_penalty=0.2), [logits[2]] * 12)

    sampler, crowded = Sampler(), row(1, temperature=1.0, seed=5, frequency_penalty=0.2)
    for step in range(12):
        others = [row(10 + step // 4 + i, temperature=1.5, seed=5, top_p=0.5) for i in range(step % 4)]
        batch = [*others, crowded]
        rows = torch.stack([logits[0]] * len(others) + [logits[2]])
        crowded.generated.append(pick(sampler, rows, *batch)[-1].token)

    assert crowded.generated == alone


def test_equal_logits_are_told_in_the_vocabularys_order() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, [50, 7, 31]] = 2.0

    choice = pick(Sampler(), logits, row(1, logprobs=5))[0]

    assert choice.token == 7
    assert [token for token, _ in choice.top] == [7, 31, 50, 0, 1]


def test_all_rows_at_once_tell_what_each_row_tells() -> None:
    logits = torch.randn(5, 3001, generator=torch.Generator().manual_seed(4)) * 3
    logits[:, 100:900] = NEVER
    rows, tokens, counts = (0, 2, 4), (5, 3000, 17), (3, 0, 20)

    at_once = logprobs_module._of_rows(logits, rows, tokens, counts)

    one_by_one = logprobs_module.logprobs(logits, rows, tokens, counts)
    for (mine, top), (theirs, likely) in zip(at_once, one_by_one, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-6)
        assert [token for token, _ in top] == [token for token, _ in likely]
        assert [value for _, value in top] == pytest.approx([value for _, value in likely], abs=2e-6)
    assert [len(top) for _, top in at_once] == list(counts)


def test_logprobs_alone_keep_no_state() -> None:
    sampler = Sampler()

    pick(sampler, noise(1, rows=2), row(1, logprobs=3), row(2))

    assert sampler.held == 0


def test_penalties_of_a_long_answer_are_the_dense_formula() -> None:
    chance = torch.Generator().manual_seed(8)
    logits = list(torch.randn(300, VOCABULARY, generator=chance))
    prompt = (4, 4, 59, 8, VOCABULARY, 10**6)
    options = {"repetition_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": -0.6}
    counts, expected = torch.zeros(VOCABULARY), []
    seen = torch.zeros(VOCABULARY, dtype=torch.bool)
    seen[[4, 59, 8]] = True
    for each in logits:
        shaped = torch.where(seen, torch.where(each > 0, each / 1.4, each * 1.4), each)
        token = int((shaped - 0.3 * counts + 0.6 * (counts > 0)).argmax())
        expected.append(token)
        counts[token] += 1
        seen[token] = True

    assert tokens_of(Sampler(), row(1, prompt, **options), logits) == expected
