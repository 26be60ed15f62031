"""Packed linear layers against transformers' own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medport_local import phantom
from medport_local.engine import packing, vectors
from medport_local.engine.agreement import _images
from medport_local.engine.loading import Siglip, load_siglip
from medport_local.engine.packing import PackedLinear, by_rows, pack
from medport_local.snapshot import open_snapshot

pytestmark = pytest.mark.skipif(not packing._works(), reason="this build of torch lacks oneDNN's linear operators")

TEXTS = ["a nodule on the left", "normal lungs", "肺部正常", ""]


def siglip(dtype: Any = "bfloat16") -> Siglip:
    return load_siglip(open_snapshot(phantom.weights_dir("medsiglip")), device="cpu", dtype=dtype)


def embedded(model: Siglip) -> torch.Tensor:
    """float32 ``[8, projection]``: four images, four texts."""
    images = vectors.of_images(model, _images(model.images.side_px))
    return torch.cat([images, vectors.of_texts(model, list(model.text.encode(TEXTS)))])


@pytest.mark.parametrize("activation", ["none", "gelu_tanh"])
@pytest.mark.parametrize("rows", [1, 7, 64, 300])
@torch.inference_mode()
def test_packed_product_is_as_near_to_the_exact_one_as_the_plain_one(activation: Any, rows: int) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(144, 538, dtype=torch.bfloat16)
    x = torch.randn(rows, 144).bfloat16()
    exact = F.linear(x.double(), plain.weight.double(), plain.bias.double())
    rounded = plain(x)
    if activation == "gelu_tanh":
        exact, rounded = F.gelu(exact, approximate="tanh"), F.gelu(rounded, approximate="tanh")

    packed = PackedLinear(plain, activation)(x)

    assert packed.dtype == torch.bfloat16
    assert (packed - exact).abs().max() <= 1.05 * (rounded - exact).abs().max()


def test_packed_model_gives_the_vectors_of_the_plain_one() -> None:
    exact, plain, model = siglip("float32"), siglip(), siglip()

    packed = pack(model.model)

    reference = embedded(exact)
    error_of_plain = (embedded(plain) - reference).abs().max()
    assert packed
    assert (embedded(model) - reference).abs().max() <= 1.5 * error_of_plain
    assert (embedded(model) * embedded(plain)).sum(-1).min() >= 0.9995


def test_rows_side_by_side_change_no_vector_and_every_layer_gets_them() -> None:
    plain, model = siglip("float32"), siglip("float32")
    seen = []
    for layer in model.model.vision_model.encoder.layers:
        layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].is_contiguous()))

    by_rows(model.model)

    assert (embedded(model) - embedded(plain)).abs().max() <= 1e-6
    assert seen == [True] * 4


def test_packed_model_holds_no_plain_weight_of_what_was_packed() -> None:
    model = siglip()
    before = model.model.num_parameters()

    pack(model.model)

    names = [name for name, _ in model.model.named_parameters() if "encoder.layers" in name]
    assert all("layer_norm" in name for name in names)
    assert model.model.num_parameters() < before / 2


def test_float32_model_stays_as_it_is() -> None:
    model = siglip("float32")

    packed = pack(model.model)

    assert not packed
    assert not any(isinstance(module, PackedLinear) for module in model.model.modules())


def test_other_activation_is_not_fused() -> None:
    model = siglip()
    layer = model.model.vision_model.encoder.layers[0]
    layer.mlp.config.hidden_act = "relu"
    layer.mlp.activation_fn = nn.ReLU()

    pack(model.model)

    assert layer.mlp.fc1.activation == "none"
    assert isinstance(layer.mlp.activation_fn, nn.ReLU)


@pytest.mark.parametrize("fault", [RuntimeError, AttributeError])
def test_model_stays_plain_where_the_operators_do_not_work(
    monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    def broken(*given: object) -> None:
        raise fault

    monkeypatch.setattr(PackedLinear, "__init__", broken)
    model = siglip()

    assert not pack(model.model)
    assert embedded(model).isfinite().all()


def test_model_stays_plain_where_the_operators_compute_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PackedLinear.forward
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: -forward(self, x))

    assert not pack(siglip().model)
