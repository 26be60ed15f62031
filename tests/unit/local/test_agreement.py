"""float32 or bfloat16: what is measured, and what follows."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch

from medport_local import phantom
from medport_local.engine import agreement
from medport_local.engine.agreement import compare, settle
from medport_local.engine.embedder import Embedder
from medport_local.engine.loading import DtypeRule, Siglip, load_siglip
from medport_local.snapshot import open_snapshot


def siglip(dtype: DtypeRule = "float32") -> Siglip:
    return load_siglip(open_snapshot(phantom.weights_dir("medsiglip")), device="cpu", dtype=dtype)


class Clock:
    """Time for ``agreement``: the float32 runs and the bfloat16 ones, in turn, take what they are told to."""

    def __init__(self, float32_s: float, bfloat16_s: float) -> None:
        self._steps = itertools.cycle([0.0, float32_s, 0.0, bfloat16_s])
        self._now = 0.0

    def perf_counter(self) -> float:
        self._now += next(self._steps)
        return self._now


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "time", Clock(3.0, 1.0))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The phantom counts as large, and as agreeing: it is not what the bound was made for."""
    monkeypatch.setattr(agreement, "SMALL_PARAMETERS", 0)
    monkeypatch.setattr(agreement, "LEAST_COSINE", 0.99)


@pytest.mark.usefixtures("faster")
def test_model_agrees_with_itself_fully() -> None:
    found = compare(siglip(), siglip())

    assert found.min_cosine == pytest.approx(1, abs=1e-6)
    assert (found.dtype, found.speedup, found.probes) == ("bfloat16", 3.0, 8)


def test_bfloat16_that_is_no_faster_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "time", Clock(1.0, 1.0))

    assert compare(siglip(), siglip()).dtype == "float32"


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
@pytest.mark.usefixtures("faster")
def test_bfloat16_that_disagrees_in_one_tower_is_not_taken(tower: str) -> None:
    other = siglip()
    with torch.no_grad():
        weight = getattr(other.model, tower).encoder.layers[0].mlp.fc2.weight
        weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))

    found = compare(siglip(), other)

    assert found.min_cosine < agreement.LEAST_COSINE
    assert found.dtype == "float32"


@pytest.mark.usefixtures("faster")
def test_vector_that_is_no_number_is_not_taken() -> None:
    broken = siglip()
    with torch.no_grad():
        broken.model.text_model.head.weight[0, 0] = torch.nan

    assert compare(siglip(), broken).dtype == "float32"


@pytest.mark.usefixtures("faster", "measured")
def test_auto_takes_the_copy_that_passed_and_logs_it_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, agreement.__name__):
        chosen, found = settle(siglip(), "auto")

    assert chosen.model.dtype == torch.bfloat16
    assert found is not None
    assert 0.99 <= found.min_cosine < 1
    assert [record.name for record in caplog.records].count(agreement.__name__) == 1


@pytest.mark.usefixtures("faster", "measured")
def test_auto_keeps_the_very_float32_model_where_the_copy_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "LEAST_COSINE", 1.1)
    model = siglip()

    chosen, found = settle(model, "auto")

    assert chosen is model
    assert chosen.model.dtype == torch.float32
    assert found is not None
    assert found.dtype == "float32"


def test_small_model_is_not_measured() -> None:
    chosen, found = settle(siglip(), "auto")

    assert (chosen.model.dtype, found) == (torch.float32, None)


@pytest.mark.usefixtures("measured")
def test_model_that_came_in_bfloat16_is_not_measured() -> None:
    chosen, found = settle(siglip("bfloat16"), "auto")

    assert (chosen.model.dtype, found) == (torch.bfloat16, None)


@pytest.mark.parametrize("loaded", ["float32", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
@pytest.mark.usefixtures("measured")
def test_dtype_that_was_asked_for_is_taken(loaded: DtypeRule, wanted: DtypeRule) -> None:
    chosen, found = settle(siglip(loaded), wanted)

    assert (chosen.model.dtype, found) == (getattr(torch, wanted), None)


@pytest.mark.usefixtures("measured")
def test_embedder_keeps_what_was_measured() -> None:
    embedder = Embedder(siglip())
    embedder.close()

    assert embedder.agreement is not None
    assert embedder.agreement.probes == 8
    assert embedder.agreement.speedup > 0
