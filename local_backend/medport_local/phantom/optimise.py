"""One optimiser step shared by both trainings: Muon for the hidden matrices, AdamW for the rest."""

import math
from collections.abc import Iterable

import torch
from torch import nn


class Optimiser:
    """Warm-up, cosine and gradient clipping over a fixed number of steps.

    Muon (orthogonalised momentum) needs about half of AdamW's steps for these small transformers;
    embeddings, heads, gains and biases are not what it is made for and stay with AdamW.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        *,
        steps: int,
        warmup: int,
        matrix_rate: float,
        other_rate: float,
        weight_decay: float,
    ) -> None:
        named = {name: weight for module in modules for name, weight in _trainable(module)}
        matrices = [weight for name, weight in named.items() if weight.ndim == 2 and ".layers." in name]
        known = {id(weight) for weight in matrices}
        others = [weight for weight in named.values() if id(weight) not in known]
        self._weights = matrices + others
        self._steps, self._warmup, self._done = steps, warmup, 0
        self._optimisers: list[tuple[torch.optim.Optimizer, float]] = [
            (
                torch.optim.Muon(
                    matrices, lr=matrix_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
                ),
                matrix_rate,
            ),
            (
                torch.optim.AdamW(
                    [
                        {"params": [w for w in others if w.ndim > 1], "weight_decay": weight_decay},
                        {"params": [w for w in others if w.ndim <= 1], "weight_decay": 0.0},
                    ],
                    lr=other_rate,
                    betas=(0.9, 0.98),
                ),
                other_rate,
            ),
        ]

    @property
    def progress(self) -> float:
        """Share of the steps done, 0 to 1."""
        return self._done / self._steps

    def step(self, loss: torch.Tensor) -> None:
        """Back-propagate the loss and change the weights once."""
        torch.autograd.backward(loss)
        self.apply()

    def apply(self) -> None:
        """Change the weights by the gradients gathered so far, and forget these."""
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        warm = min(1.0, (self._done + 1) / self._warmup)
        factor = warm * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * self.progress)))
        for optimiser, rate in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = factor * rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self._done += 1


def _trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    prefix = f"{id(module)}."
    return [(prefix + name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
