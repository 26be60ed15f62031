"""Gemma 3's decoder over rows: the rows of a prompt's chunk, or one row for each sequence that decodes.

The parameters are those of the transformers module, without a copy, and every rounding is where it is there. What
is different: rows may stand at positions of their own, keys and values are kept by ``kvcache``, and only the rows
that are asked for get logits. ``reference`` is the plain version that tests compare with.

Source: Gemma 3 Technical Report (2025); transformers, ``modeling_gemma3``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from medport_local.engine.kernels import Dense, Linear, Table, joined, rms_norm

if TYPE_CHECKING:
    from medport_local.engine.loading import Gemma


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes that keys and values depend on."""

    sliding: tuple[bool, ...]
    """For each layer whether it sees the last ``window`` tokens only."""
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    scale: float
    """Of the attention's logits."""


class Attend(Protocol):
    """Attention of one step, over the cached keys and values and those of its rows."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with the rows of one layer.

        Args:
            q: ``[rows, heads, head_dim]``.
            k: ``[rows, kv_heads, head_dim]``.
            v: as ``k``.

        Returns:
            ``[rows, heads * head_dim]``.
        """
        ...


class Side(Protocol):
    """What an adapter adds to a product."""

    def __call__(self, y: Tensor, x: Tensor, layer: int, name: str) -> Tensor:
        """``y = W x`` for ``x``, both ``[rows, …]`` → ``y`` with the adapters' parts added."""
        ...


LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Layer:
    """The parameters of one layer, and what they are multiplied with."""

    def __init__(
        self,
        index: int,
        module: Any,
        linear: Callable[[str, Any], Linear],
        *,
        sliding: bool,
        heads: int,
        kv_heads: int,
    ) -> None:
        self.index = index
        self.sliding = sliding
        self._heads, self._kv_heads, self._head_dim = heads, kv_heads, module.self_attn.head_dim
        attention, mlp = module.self_attn, module.mlp
        self.linears = {
            name: linear(f"layers.{index}.{name}", getattr(owner, name))
            for owner, names in ((attention, LINEARS[:4]), (mlp, LINEARS[4:]))
            for name in names
        }
        self.before_attention = _factor(module.input_layernorm)
        self.after_attention = _factor(module.post_attention_layernorm)
        self.before_mlp = _factor(module.pre_feedforward_layernorm)
        self.after_mlp = _factor(module.post_feedforward_layernorm)
        # [heads + kv_heads, head_dim]: queries and keys are normalised and turned in one go.
        self.qk_norm = torch.cat(
            [
                _factor(attention.q_norm).expand(heads, -1),
                _factor(attention.k_norm).expand(kv_heads, -1),
            ]
        )
        self.gate_up = _joined(self.linears, ("gate_proj", "up_proj"))
        self._qkv = _joined(self.linears, ("q_proj", "k_proj", "v_proj"))

    def qkv_of(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[rows, hidden]`` → queries, keys and values, ``[rows, …]``; their rows may lie apart."""
        sizes = [self._heads * self._head_dim, *[self._kv_heads * self._head_dim] * 2]
        if self._qkv is not None:
            q, k, v = self._qkv(h).split(sizes, dim=1)  # type: ignore[no-untyped-call]
        else:
            q, k, v = (self.linears[name](h).contiguous() for name in ("q_proj", "k_proj", "v_proj"))
        return q, k, v

    def gate_up_of(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """``[rows, hidden]`` → gate and up, ``[rows, intermediate]``; their rows may lie apart."""
        if self.gate_up is None:
            return self.linears["gate_proj"](h).contiguous(), self.linears["up_proj"](h).contiguous()
        gate, up = self.gate_up(h).chunk(2, dim=1)
        return gate, up


def _joined(linears: Mapping[str, Linear], names: Sequence[str]) -> Dense | None:
    """Products as one, where all are dense and their weights lie behind each other."""
    found: Dense | None = None
    for name in names:
        linear = linears[name]
        if not isinstance(linear, Dense):
            return None
        if name == names[0]:
            found = linear
        elif found is not None:
            found = joined(found, linear)
    return found


def lie_together(modules: Sequence[Any]) -> None:
    """Put the weights of linear modules behind each other in memory, so that their products can be one."""
    whole = torch.cat([module.weight for module in modules])
    first = 0
    for module in modules:
        last = first + len(module.weight)
        module.weight.data = whole[first:last]
        first = last


def _factor(norm: Any) -> Tensor:
    weight: Tensor = norm.weight
    return 1.0 + weight.float()


def plain(name: str, module: Any) -> Linear:
    """The product of a module's weight as it is stored."""
    assert module.bias is None, name
    return Dense(module.weight)


class Decoder:
    """The decoder of one model.

    Args:
        text_model: a ``Gemma3TextModel``.
        head: the weight that makes logits, ``[vocabulary, hidden]``.
        linear: makes each product, by the name ``layers.3.q_proj`` or ``lm_head``, from its module.
        table: the embedding; that of the module if none.
    """

    def __init__(
        self,
        text_model: Any,
        head: Any,
        linear: Callable[[str, Any], Linear] = plain,
        table: Table | None = None,
    ) -> None:
        config = text_model.config
        assert config.attn_logit_softcapping is None
        assert config.final_logit_softcapping is None
        self.shape = Shape(
            sliding=tuple(kind == "sliding_attention" for kind in config.layer_types),
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            window=config.sliding_window,
            scale=config.query_pre_attn_scalar**-0.5,
        )
        embedding = text_model.embed_tokens
        self._table: Table = table or Dense(embedding.weight)
        # A norm says it: whatever else is int8, norms are not.
        self._device: torch.device = text_model.norm.weight.device
        self._dtype: torch.dtype = text_model.norm.weight.dtype
        self._embed_scale: Tensor = embedding.embed_scale.to(self._dtype)
        self.eps: float = config.rms_norm_eps
        if self._device.type == "cuda" and linear is plain:
            for module in text_model.layers:
                lie_together([getattr(module.self_attn, name) for name in LINEARS[:3]])
                lie_together([getattr(module.mlp, name) for name in LINEARS[4:6]])
        self.layers = [
            Layer(
                i,
                module,
                linear,
                sliding=self.shape.sliding[i],
                heads=self.shape.heads,
                kv_heads=self.shape.kv_heads,
            )
            for i, module in enumerate(text_model.layers)
        ]
        self.norm = _factor(text_model.norm)
        self.head = linear("lm_head", head)
        rotary = text_model.rotary_emb
        self._rotary: dict[bool, tuple[Tensor, float]] = {
            kind == "sliding_attention": (
                getattr(rotary, f"{kind}_inv_freq").float(),
                getattr(rotary, f"{kind}_attention_scaling"),
            )
            for kind in set(config.layer_types)
        }

    @classmethod
    def of(cls, gemma: Gemma) -> Decoder:
        """The decoder of a loaded model."""
        text_model = gemma.model.model.language_model if gemma.images is not None else gemma.model.model
        if gemma.int8:
            int8 = gemma.int8
            return cls(text_model, gemma.model.lm_head, lambda name, _: int8[name], int8["embed_tokens"])
        return cls(text_model, gemma.model.lm_head)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that one step reads."""
        return self.head.nbytes + sum(each.nbytes for layer in self.layers for each in layer.linears.values())

    def embed(self, ids: Tensor) -> Tensor:
        """int64 ``[rows]`` → ``[rows, hidden]``."""
        return self._table.rows(ids, self._dtype) * self._embed_scale

    def forward(self, x: Tensor, positions: Tensor, attend: Attend, side: Side | None = None) -> Tensor:
        """The hidden states after the last layer, not yet normalised.

        Args:
            x: ``[rows, hidden]``, embeddings or an image's features.
            positions: int64 ``[rows]``, in the row's own sequence.
            attend: keeps the rows' keys and values, and attends.
            side: adds what adapters say.
        """
        turns = self.turns(positions, x.dtype)
        for layer in self.layers:
            x = self._block(layer, x, turns[layer.sliding], attend, side)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 ``[rows, vocabulary]`` for ``forward``'s rows."""
        return self.head.logits(rms_norm(hidden, self.norm, self.eps))

    def _block(
        self, layer: Layer, x: Tensor, turn: tuple[Tensor, Tensor], attend: Attend, side: Side | None
    ) -> Tensor:
        shape, eps = self.shape, self.eps

        def times(name: str, x: Tensor) -> Tensor:
            y = layer.linears[name](x)
            return y if side is None else side(y, x, layer.index, name)

        h = rms_norm(x, layer.before_attention, eps)
        qk = torch.cat([times("q_proj", h), times("k_proj", h)], dim=1).contiguous()
        qk = qk.view(len(x), shape.heads + shape.kv_heads, shape.head_dim)
        v = times("v_proj", h).contiguous().view(len(x), shape.kv_heads, shape.head_dim)
        qk = _rotate(rms_norm(qk, layer.qk_norm, eps), turn)
        q, k = qk[:, : shape.heads], qk[:, shape.heads :]
        mixed = times("o_proj", attend(layer.index, q, k, v))
        x = x + rms_norm(mixed, layer.after_attention, eps)
        h = rms_norm(x, layer.before_mlp, eps)
        if layer.gate_up is None or side is not None:
            gate, up = times("gate_proj", h), times("up_proj", h)
        else:
            gate, up = layer.gate_up_of(h)
        gated = F.gelu(gate, approximate="tanh") * up
        return x + rms_norm(times("down_proj", gated), layer.after_mlp, eps)

    def turns(self, positions: Tensor, dtype: torch.dtype) -> dict[bool, tuple[Tensor, Tensor]]:
        """Cosines and signed sines, each ``[rows, 1, head_dim]``; those of sliding layers by ``True``."""
        return {sliding: self._turn(sliding, positions, dtype) for sliding in self._rotary}

    def _turn(self, sliding: bool, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        frequencies, scaling = self._rotary[sliding]
        angles = positions[:, None].float() * frequencies  # [rows, head_dim / 2]
        cos, sin = angles.cos() * scaling, angles.sin() * scaling
        # The sign of the rotated half is in the sine, so that rotating is one roll.
        return torch.cat([cos, cos], -1)[:, None].to(dtype), torch.cat([-sin, sin], -1)[:, None].to(dtype)


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    return x * cos + torch.roll(x, x.shape[-1] // 2, -1) * sin


def image_numbers(blocks: Sequence[tuple[int, int]], start: int, end: int, device: torch.device) -> Tensor | None:
    """int64 ``[end - start]``: the number of each position's image block, -1 outside; ``None`` if all are."""
    inside = [(i, s, e) for i, (s, e) in enumerate(blocks) if s < end and e > start]
    if not inside:
        return None
    numbers = torch.full((end - start,), -1, dtype=torch.long)
    for i, s, e in inside:
        assert start <= s < e <= end, "a chunk's edge lies inside an image block"
        numbers[s - start : e - start] = i
    return numbers.to(device)
