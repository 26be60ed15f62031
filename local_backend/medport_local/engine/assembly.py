"""A module of transformers without memory, and verified weights: together a model that is ready to run.

The module is built on the meta device, so nothing is allocated or filled with random numbers first; every
parameter is then the tensor that was read, and every weight of both sides is accounted for.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from medport.errors import VerificationError
from medport_local.engine.weights import Shard

_PREFIX = re.compile(r"(model\.language_model|language_model\.model|language_model|model)\.")
_TOWER = re.compile(r"vision_tower\.vision_model\.")


def canonical(name: str) -> str:
    """A weight's name in one spelling.

    Published checkpoints say ``language_model.model.layers.0…`` or ``model.language_model.layers.0…``, and
    ``vision_tower.vision_model.…`` or ``vision_tower.…``; which of them a module says depends on the release of
    transformers (its ``conversion_mapping`` renames from the one to the other by regular expressions).
    """
    return _TOWER.sub("vision_tower.", _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name, count=1)


def empty_model(model_class: Any, config: Any) -> Any:
    """A model whose parameters have shapes and no memory.

    The attention is torch's own: a configuration cannot choose one that would be fetched and run.
    """
    with torch.device("meta"):
        model = model_class(config)
    model.set_attn_implementation("sdpa")
    model.tie_weights()
    return model


def fill_model(
    model: Any,
    shards: Iterable[Shard],
    *,
    device: torch.device,
    dtype: torch.dtype,
    rebuild: Callable[[nn.Module, str, Tensor], Tensor],
    elsewhere: Collection[str] = (),
) -> None:
    """Give every parameter its weight, and every buffer its value.

    On the CPU, weights that are stored in ``dtype`` are not copied. Others are converted or moved one by one, and
    the memory that each was read into is given back at once.

    Args:
        rebuild: the value of a buffer, which no file holds, from its module, its name there and its empty form.
        elsewhere: canonical names of weights that are kept outside of the model; these parameters stay empty.

    Raises:
        VerificationError: a weight is missing, unknown, of another shape or there twice. Names the first.
    """
    places = _places(model)
    found: dict[str, Tensor] = {}
    faults: dict[str, list[str]] = defaultdict(list)
    for shard in shards:
        for stored in shard.tensors:
            name = canonical(stored.name)
            if name in found:
                faults["holds twice"].append(stored.name)
            elif name not in places:
                faults["holds the unknown"].append(stored.name)
            elif places[name].shape != stored.shape:
                faults["has another shape for"].append(stored.name)
            else:
                view = shard.view(stored)
                found[name] = view.to(device, dtype)
                if found[name].data_ptr() != view.data_ptr():
                    shard.forget(stored)
    _check(places, found, faults, elsewhere)
    by_parameter = {id(places[name]): tensor for name, tensor in found.items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    filled = {name: by_parameter[id(each)] for name, each in parameters.items() if id(each) in by_parameter}
    model.load_state_dict(filled, assign=True, strict=not elsewhere)
    model.tie_weights()
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, rebuild(module, name, buffer).to(device))
    model.eval().requires_grad_(False)
    empty = {canonical(name) for name, each in model.named_parameters(remove_duplicate=False) if each.is_meta}
    assert empty <= set(elsewhere)
    assert not any(each.is_meta for each in model.buffers())


def _places(model: Any) -> dict[str, nn.Parameter]:
    """The empty parameters by canonical name; one that is tied to another has several names."""
    named = list(model.named_parameters(remove_duplicate=False))
    places = {canonical(name): parameter for name, parameter in named}
    assert len(places) == len(named)
    return places


def _check(
    places: dict[str, nn.Parameter],
    found: dict[str, Tensor],
    faults: dict[str, list[str]],
    elsewhere: Collection[str],
) -> None:
    there = {id(places[name]) for name in (*found, *elsewhere)}
    wrong = {canonical(name) for name in faults["has another shape for"]}
    lacking = [name for name, place in places.items() if id(place) not in there and name not in wrong]
    for fault, names in (("lacks", lacking), *faults.items()):
        if names:
            first, others = min(names), len(names) - 1
            raise VerificationError(
                f"the snapshot {fault} {first:.100}" + (f" and {others} more weights" if others else ""),
                field="model.safetensors",
                remedy="fetch the snapshot again; it does not fit its config.json",
            )
    ties: dict[int, str] = {}
    for name in found:
        other = ties.setdefault(id(places[name]), name)
        if other != name and not torch.equal(found[name], found[other]):
            raise VerificationError(
                f"the snapshot holds {name} and {other}, which config.json says are one, and they differ",
                field="config.json",
                remedy="set tie_word_embeddings to false if both are meant",
            )
