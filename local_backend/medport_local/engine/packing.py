"""How MedSigLIP's numbers lie in memory: the same forward, sooner.

Everywhere: the patches' rows are laid out one after the other. transformers takes them from the convolution as
columns, each sum with the residual keeps that order, and so every norm of every layer has to turn them around.

On a CPU in bfloat16: weights lie in oneDNN's own layout, and GELU is inside the product before it. There torch's
``linear`` brings its weight into that layout at every call, and its GELU costs half as much as the product. Fused,
GELU sees the product before it is rounded. The operators are those that ``torch.compile`` uses for frozen weights;
they are no part of torch's public interface, so they are tried before they are used.

Measured by ``tests/benchmarks/embed_limit.py``. Source: PyTorch, torch/_inductor/fx_passes/mkldnn_fusion.py.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Activation = Literal["none", "gelu_tanh"]

_ROWS = 1024
"""The number of rows that the layout is chosen for: one image of 448 pixels a side. Others work as well."""


class PackedLinear(nn.Module):
    """A linear layer and what follows it.

    Args:
        linear: the layer; bfloat16, on the CPU. It is not needed afterwards.
        activation: ``"gelu_tanh"`` is ``gelu(y, approximate="tanh")``.
    """

    def __init__(self, linear: nn.Linear, activation: Activation = "none") -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.activation = activation
        operators: Any = torch.ops.mkldnn
        # No parameter: it can neither be saved nor converted. ``Module.to`` would fail on its layout.
        self._weight: Tensor = operators._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._product = operators._linear_pointwise
        self._options: tuple[str, list[Any], str] = (
            ("gelu", [], "tanh") if activation == "gelu_tanh" else ("none", [], "")
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[…, in]`` → ``[…, out]``, both bfloat16."""
        y: Tensor = self._product(x, self._weight, self._bias, *self._options)
        return y


def by_rows(model: Any) -> None:
    """Let the towers of a SigLIP model hand each patch's numbers on side by side, as all layers read them."""
    for module in model.modules():
        if type(module).__name__ == "SiglipVisionEmbeddings":
            module.register_forward_hook(_contiguous)


def pack(model: Any) -> bool:
    """Pack the linear layers of all encoder layers of a SigLIP tower or model, in place.

    Each plain weight is let go as its packed form is there, so memory grows by one weight at most. Afterwards the
    model is for inference only: it can no longer be saved, moved or converted.

    Returns:
        Whether it was done: only in bfloat16 on a CPU, and only if this build of torch has the operators.
    """
    layers = [module for module in model.modules() if type(module).__name__ == "SiglipEncoderLayer"]
    if not layers or not _fits(next(layers[0].parameters())) or not _works():
        return False
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(attention, name, PackedLinear(getattr(attention, name)))
        if layer.mlp.config.hidden_act == "gelu_pytorch_tanh":
            mlp.fc1 = PackedLinear(mlp.fc1, "gelu_tanh")
            mlp.activation_fn = nn.Identity()
        else:
            mlp.fc1 = PackedLinear(mlp.fc1)
        mlp.fc2 = PackedLinear(mlp.fc2)
    return True


def _contiguous(module: nn.Module, given: object, patches: Tensor) -> Tensor:
    return patches.contiguous()


def _fits(weight: Tensor) -> bool:
    # float32 products are as fast unpacked.
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16


@torch.inference_mode()
def _works() -> bool:
    """Whether the operators are there and compute what they are taken for."""
    plain = nn.Linear(32, 16, dtype=torch.bfloat16)
    x = torch.linspace(-3, 3, 96, dtype=torch.bfloat16).view(3, 32)
    try:
        found = PackedLinear(plain, "gelu_tanh")(x)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError) as fault:
        logger.info("linear layers stay unpacked: %s", type(fault).__name__)
        return False
    return torch.allclose(found.float(), F.gelu(plain(x), approximate="tanh").float(), atol=0.05, rtol=0.02)
