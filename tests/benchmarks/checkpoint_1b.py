"""A random checkpoint of the Gemma-3-1B shape with a small image tower, made once into a cache directory.

Real MedGemma weights cannot be had everywhere, and speed does not depend on what the weights say. Not random is
the shape: layers, window, grouped heads, tied head and vocabulary are those of Gemma 3 1B. An image of 896
pixels a side has 4,096 patches and becomes 256 tokens, as MedGemma's, but the tower has few and narrow layers.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

SHAPE = {
    "vocab_size": 262_208,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
TOWER = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "image_size": 896,
    "patch_size": 14,
    "vision_use_head": False,
}
IMAGE_TOKENS = 256
SOFT, BEGIN, END = "<image_soft_token>", "<start_of_image>", "<end_of_image>"


def checkpoint(tokenizer_from: Path) -> Path:
    """The directory of the checkpoint, made if it is not there (2 GB; some minutes).

    Args:
        tokenizer_from: a Gemma 3 snapshot, for its tokenizer.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "medport-benchmarks" / "gemma-3-1b-shape"
    if not folder.is_dir():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _write(part, tokenizer_from)
        part.rename(folder)
    return folder


def _write(folder: Path, tokenizer_from: Path) -> None:
    import torch
    from transformers import (
        AddedToken,
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3Processor,
        GemmaTokenizer,
        GenerationConfig,
    )
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    from medport_local.bench.template import PLAIN

    tokenizer = GemmaTokenizer.from_pretrained(
        tokenizer_from,
        local_files_only=True,
        extra_special_tokens={"boi_token": BEGIN, "eoi_token": END, "image_token": SOFT},
    )
    tokenizer.add_tokens([AddedToken(SOFT, special=True, normalized=False)])
    tokenizer.chat_template = PLAIN
    begin, end, soft = tokenizer.convert_tokens_to_ids([BEGIN, END, SOFT])
    assert len({begin, end, soft, tokenizer.unk_token_id}) == 4
    config = Gemma3Config(
        text_config=SHAPE,
        vision_config=TOWER,
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=begin,
        eoi_token_index=end,
        image_token_index=soft,
        eos_token_id=[1, 106],
        tie_word_embeddings=True,
        architectures=["Gemma3ForConditionalGeneration"],
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model: Any = Gemma3ForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        # The library leaves it at zero: then an image would not matter.
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(0, 0.03)
    model.generation_config = GenerationConfig(bos_token_id=2, eos_token_id=[1, 106], pad_token_id=0)
    model.save_pretrained(folder)
    side = {"height": TOWER["image_size"], "width": TOWER["image_size"]}
    images = Gemma3ImageProcessorPil(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True)
    Gemma3Processor(images, tokenizer, image_seq_length=IMAGE_TOKENS, chat_template=PLAIN).save_pretrained(folder)
