"""A LoRA adapter in PEFT's layout, with random weights, for the language model of any Gemma 3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_RANK = 2


def write_adapter(folder: Path, config: Any, *, seed: int = 0, strength: float = 64.0) -> Path:
    """Write one that changes ``q_proj`` and ``down_proj`` of each layer.

    Args:
        config: the model's ``Gemma3TextConfig``, as a dictionary.
        strength: of what it adds; large enough to change answers.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "self_attn.q_proj": (config["hidden_size"], config["num_attention_heads"] * config["head_dim"]),
        "mlp.down_proj": (config["intermediate_size"], config["hidden_size"]),
    }
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (inputs, outputs) in shapes.items():
            place = f"base_model.model.model.language_model.layers.{layer}.{name}"
            weights[f"{place}.lora_A.weight"] = torch.randn(_RANK, inputs, generator=generator)
            weights[f"{place}.lora_B.weight"] = torch.randn(outputs, _RANK, generator=generator)
    folder.mkdir(parents=True)
    settings = {
        "peft_type": "LORA", "r": _RANK, "lora_alpha": strength, "target_modules": ["q_proj", "down_proj"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder
