"""The draw's short cuts against the definition: the same tokens kept, the same token drawn, always."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medport_local.engine import draw
from medport_local.engine.distribution import NEVER, distribution, drawn
from medport_local.engine.draw import Drawer, nucleus, survivors
from medport_local.engine.sequence import Sampling

LARGEST = float(np.finfo(np.float32).max)

levels = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, NEVER, LARGEST, -LARGEST, 80.0, 1e-3]),
    st.floats(-30, 30, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
points = st.one_of(
    st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, math.nextafter(1, 0)])
)
samplings = st.builds(
    Sampling,
    max_tokens=st.just(1),
    temperature=st.one_of(st.sampled_from([1.0, 0.7, 2.0, 1e-5]), st.floats(1e-5, 100)),
    top_k=st.one_of(st.sampled_from([0, 0, -1, 1, 2, 5, 64, 1_000_000]), st.integers(0, 500)),
    top_p=st.one_of(
        st.sampled_from([1.0, 1.0, 0.95, 0.5, 0.3, 5e-324, math.nextafter(1, 0)]), st.floats(1e-12, 1)
    ),
    min_p=st.one_of(st.sampled_from([0.0, 0.0, 0.0, 1.0, 0.1, 5e-324]), st.floats(0, 1)),
)


@st.composite
def rows(draw: st.DrawFn) -> torch.Tensor:
    """Few different logits, so that there are ties; tiny vocabularies and some of hundreds."""
    alphabet = draw(st.lists(levels, min_size=1, max_size=6))
    size = draw(st.one_of(st.integers(1, 12), st.integers(13, 700)))
    seed = draw(st.integers(0, 2**32))
    shaken = draw(st.sampled_from([0.0, 0.0, 1e-6, 3.0]))
    chance = random.Random(seed)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * shaken
    logits = (torch.tensor([chance.choice(alphabet) for _ in range(size)]) + noise).clamp(max=LARGEST)
    if not bool((logits > NEVER).any()):
        logits[chance.randrange(size)] = 0.5
    return logits


def flat(size: int, spread: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def edges(logits: torch.Tensor, sampling: Sampling) -> list[float]:
    """Points beside which the token changes, and the points themselves."""
    reached = distribution(logits, sampling)[0].cumsum(0)
    some = reached[torch.linspace(0, len(reached) - 1, min(len(reached), 12)).long()].tolist()
    near = [edge + by for edge in some for by in (0.0, 1e-16, -1e-16, 1e-12, -1e-12, 1e-7, -1e-7)]
    return [point for point in near if 0 <= point < 1]


@settings(max_examples=300, deadline=None)
@given(logits=rows(), sampling=samplings, point=points, few=st.sampled_from([0, 2048]))
def test_shortcuts_draw_the_token_of_the_definition(
    logits: torch.Tensor, sampling: Sampling, point: float, few: int
) -> None:
    found = Drawer(few).draw(logits, float(logits.max()), sampling, point)

    assert found == drawn(logits, sampling, point)


@settings(max_examples=60, deadline=None)
@given(logits=rows(), sampling=samplings, few=st.sampled_from([0, 2048]))
def test_shortcuts_agree_at_the_very_edges(logits: torch.Tensor, sampling: Sampling, few: int) -> None:
    drawer = Drawer(few)

    for point in edges(logits, sampling):
        assert drawer.draw(logits, float(logits.max()), sampling, point) == drawn(logits, sampling, point)


@settings(max_examples=150, deadline=None)
@given(logits=rows(), sampling=samplings)
def test_what_is_left_out_early_changes_nothing(logits: torch.Tensor, sampling: Sampling) -> None:
    probabilities, tokens = distribution(logits, sampling)

    ids = survivors(logits.numpy(), float(logits.max()), sampling)

    if ids is None:
        assert sampling.min_p == 0
        assert not 0 < sampling.top_k < len(logits)
    else:
        found, places = distribution(logits[torch.from_numpy(ids)], sampling)
        assert ids[places.numpy()].tolist() == tokens.tolist()
        assert torch.equal(found, probabilities)


@settings(max_examples=200, deadline=None)
@given(logits=rows(), sampling=samplings, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_top_p_keeps_what_the_definition_keeps_or_says_that_it_cannot_tell(
    logits: torch.Tensor, sampling: Sampling, dtype: torch.dtype
) -> None:
    alone = Sampling(max_tokens=1, temperature=sampling.temperature, top_p=min(sampling.top_p, 1 - 1e-6))
    probabilities, tokens = distribution(logits, alone)
    weights = Drawer().weights(logits, float(logits.max()), alone.temperature, dtype)

    run = nucleus(logits.numpy(), weights, float(logits.max()), alone, 1e-5 if dtype == torch.float32 else 1e-9)

    if run is not None:
        ids, reached, _ = run
        assert ids.tolist() == tokens.tolist()
        found = np.diff(reached, prepend=0.0) / reached[-1]
        assert np.abs(found - probabilities.numpy()).max() <= (1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("size", [4096, 20_011])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 0.95},
        {"top_p": 0.2, "temperature": 0.6},
        {"top_k": 64, "top_p": 0.95},
        {"top_k": 3000},
        {"min_p": 1e-4},
        {"min_p": 0.05, "top_p": 0.9},
        {"temperature": 1.7},
    ],
)
def test_long_rows_draw_the_token_of_the_definition(spread: float, size: int, options: dict[str, float]) -> None:
    sampling = Sampling(**{"max_tokens": 1, "temperature": 1.0, **options})  # type: ignore[arg-type]
    logits = flat(size, spread)
    drawer = Drawer()
    chance = random.Random(size)

    wanted = [0.0, math.nextafter(1, 0), *edges(logits, sampling)[::9], *(chance.random() for _ in range(8))]

    for point in wanted:
        assert drawer.draw(logits, float(logits.max()), sampling, point) == drawn(logits, sampling, point)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 0.95},
        {"top_p": 0.95, "temperature": 0.5},
        {"min_p": 1e-8},
        {"min_p": 0.05},
        {"top_k": 64, "top_p": 0.95},
        {"top_k": 2000},
    ],
)
def test_usual_rows_need_no_definition(monkeypatch: pytest.MonkeyPatch, options: dict[str, float]) -> None:
    logits = flat(262_144, 1.5)
    logits[::5000] += 12
    sampling = Sampling(**{"max_tokens": 1, "temperature": 1.0, **options})  # type: ignore[arg-type]
    drawer = Drawer()
    expected = [drawn(logits, sampling, i / 20) for i in range(1, 20)]
    monkeypatch.setattr(draw, "drawn", None)  # a call would fail

    found = [drawer.draw(logits, float(logits.max()), sampling, i / 20) for i in range(1, 20)]

    assert found == expected


def test_weights_are_as_near_as_is_claimed() -> None:
    logits = flat(262_144, 3.0)
    exact = ((logits.double() - logits.max()) / 0.9).softmax(0).cumsum(0)

    for dtype, slack in draw._SLACK.items():
        weights = torch.from_numpy(Drawer().weights(logits, float(logits.max()), 0.9, dtype)).reshape(-1)[
            : len(logits)
        ]
        reached = weights.double().cumsum(0)
        assert float((reached / reached[-1] - exact).abs().max()) < slack / 2


def test_drawing_leaves_the_logits_alone() -> None:
    logits = flat(9000, 2.0)
    before = logits.clone()

    for options in ({}, {"top_p": 0.9}, {"top_k": 9}, {"min_p": 0.1}):
        Drawer().draw(
            logits,
            float(logits.max()),
            Sampling(max_tokens=1, temperature=0.8, **options),  # type: ignore[arg-type]
            0.4,
        )

    assert torch.equal(logits, before)


@pytest.mark.parametrize("few", [0, 2048])
def test_top_p_that_ends_exactly_between_two_tokens_is_left_to_the_definition(few: int) -> None:
    drawer = Drawer(few)

    for size in range(2, 60):
        logits = torch.zeros(size)
        for kept in range(1, size):
            sampling = Sampling(max_tokens=1, temperature=0.7, top_p=kept / size)
            last = math.nextafter(1, 0)
            assert drawer.draw(logits, 0.0, sampling, last) == drawn(logits, sampling, last)


def test_min_p_that_ends_exactly_at_a_token_keeps_what_the_definition_keeps() -> None:
    for share in (math.exp(-1), math.exp(-2), 0.1, 0.5):
        for temperature in (1.0, 0.7):
            sampling = Sampling(max_tokens=1, temperature=temperature, min_p=share)
            top = np.float32(-temperature * math.log(share))
            around = [0.0, 1e-17, -1e-17, 1e-16, -1e-16, 1e-9, -1e-9, float(np.spacing(top))]
            logits = torch.tensor([float(top), *around])

            ids = survivors(logits.numpy(), float(top), sampling)

            assert ids is not None
            assert ids.tolist() == distribution(logits, sampling)[1].tolist()
