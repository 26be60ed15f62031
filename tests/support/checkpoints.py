"""Checkpoints of a chosen size with random weights, to measure loading with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from medport_local.phantom import weights_dir


def write_text_gemma(folder: Path, *, layers: int, hidden: int = 1024, vocabulary: int = 32_768) -> int:
    """A text-only Gemma in bfloat16, with the phantom's tokenizer; no answer of it means anything.

    Returns:
        Bytes of its weights.
    """
    folder.mkdir(parents=True)
    config = Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=hidden // 4,
        sliding_window=128,
        max_position_embeddings=2048,
        architectures=["Gemma3ForCausalLM"],
    )
    with torch.device("meta"):
        model: Any = Gemma3ForCausalLM(config)
    weights = {
        name: torch.empty(parameter.shape, dtype=torch.bfloat16).normal_(0, 0.02)
        for name, parameter in model.named_parameters()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(weights_dir("medgemma") / name, folder / name)
    return sum(tensor.nbytes for tensor in weights.values())
