"""Two tiny models with random weights, made in a second, for tests that ask how and not how well."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from tokenizers import AddedToken
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    GemmaTokenizer,
    GenerationConfig,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
    SiglipTokenizer,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from medport_local.engine.engine import EngineLimits, TorchEngine
from medport_local.engine.loading import load_gemma
from medport_local.snapshot import FileEntry, Snapshot, digest_of, open_snapshot

# With several threads a contended machine spends its time at their barriers; these models are too small to gain.
torch.set_num_threads(1)

IMAGE_PX, PATCH_PX, IMAGE_TOKENS, WINDOW, CONTEXT = 28, 7, 4, 32, 512

# In the manner of the published template: system before the first user text, texts trimmed, images as a mark.
TEMPLATE = (
    "{{ bos_token }}{% set first = '' %}{% set turns = messages %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] if messages[0]['content'] is string "
    "else messages[0]['content'][0]['text'] %}"
    "{% set first = first + '\n\n' %}{% set turns = messages[1:] %}{% endif %}"
    "{% for m in turns %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{% if loop.first %}{{ first }}{% endif %}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ p['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def gemma_tokenizer() -> GemmaTokenizer:
    unused = [f"<unused{i}>" for i in range(99)]
    head = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        "[multimodal]",
        *unused,
        "<start_of_turn>",
        "<end_of_turn>",
    ]
    newlines = ["\n" * n for n in range(1, 9)]
    letters = sorted(set(string.printable) - set(string.whitespace)) + list("▁肺部影像正常")
    images = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    pieces = [*head, *newlines, *(f"<0x{b:02X}>" for b in range(256)), *letters, "th", "the", *images]
    merges = [("\n" * (n // 2), "\n" * (n - n // 2)) for n in range(2, 9)] + [("t", "h"), ("th", "e")]
    tokenizer = GemmaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=merges,
        padding_side="left",
        model_max_length=CONTEXT,
        extra_special_tokens={"boi_token": images[0], "eoi_token": images[1], "image_token": images[2]},
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]}, replace_extra_special_tokens=False
    )
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in unused])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_gemma(folder: Path, *, takes_images: bool = True) -> None:
    torch.manual_seed(0)
    tokenizer = gemma_tokenizer()
    boi, eoi, soft = tokenizer.convert_tokens_to_ids(["<start_of_image>", "<end_of_image>", "<image_soft_token>"])
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": WINDOW,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
        # Tied random embeddings would answer every prompt with one token for ever.
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_PX,
        "patch_size": PATCH_PX,
        "vision_use_head": False,
    }
    model: Any
    if takes_images:
        config = Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=IMAGE_TOKENS,
            boi_token_index=boi,
            eoi_token_index=eoi,
            image_token_index=soft,
            initializer_range=0.3,
            tie_word_embeddings=False,
            eos_token_id=[1, 106],
        )
        model = Gemma3ForConditionalGeneration(config)
        with torch.no_grad():
            model.model.multi_modal_projector.mm_input_projection_weight.normal_(0, 1)
    else:
        from transformers import Gemma3TextConfig

        model = Gemma3ForCausalLM(Gemma3TextConfig(**text))
    model.generation_config = GenerationConfig(
        bos_token_id=2, eos_token_id=[1, 106], pad_token_id=0, do_sample=False
    )
    model.save_pretrained(folder)
    if takes_images:
        size = {"height": IMAGE_PX, "width": IMAGE_PX}
        images = Gemma3ImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True)
        processor = Gemma3Processor(images, tokenizer, image_seq_length=IMAGE_TOKENS, chat_template=TEMPLATE)
        processor.save_pretrained(folder)
    else:
        tokenizer.save_pretrained(folder)


def save_siglip(folder: Path) -> None:
    torch.manual_seed(1)
    folder.mkdir(parents=True, exist_ok=True)
    spiece = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a chest x ray with an effusion", "normal lungs", "a nodule on the left"] * 9),
        model_writer=spiece,
        vocab_size=300,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "spiece.model").write_bytes(spiece.getvalue())
    tokenizer = SiglipTokenizer(vocab_file=str(folder / "spiece.model"), model_max_length=64, pad_token="</s>")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1}
    config = SiglipConfig(
        text_config={
            **shape,
            **ids,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "projection_size": 16,
        },
        vision_config={**shape, "image_size": IMAGE_PX, "patch_size": PATCH_PX},
    )
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-5.0)
    model.save_pretrained(folder)
    size = {"height": IMAGE_PX, "width": IMAGE_PX}
    images = SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3)
    SiglipProcessor(images, tokenizer).save_pretrained(folder)


def write_manifest(folder: Path, family: str) -> None:
    table = {
        path.relative_to(folder).as_posix(): FileEntry(
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size_bytes=path.stat().st_size
        )
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    manifest = {
        "repo_id": f"medport/{family}-toy",
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "family": family,
        "notice": "Toy model. Not for medical use.",
        "files": {name: entry.model_dump() for name, entry in table.items()},
        "snapshot_sha256": digest_of(table),
        "scores": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def gemma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys") / "gemma"
    save_gemma(folder)
    write_manifest(folder, "medgemma")
    return folder


@pytest.fixture(scope="session")
def text_gemma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys") / "text-gemma"
    save_gemma(folder, takes_images=False)
    return folder


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys") / "siglip"
    save_siglip(folder)
    write_manifest(folder, "medsiglip")
    return folder


@pytest.fixture(scope="session")
def gemma_snapshot(gemma_folder: Path) -> Snapshot:
    return open_snapshot(gemma_folder)


@pytest.fixture
def new_engine(gemma_snapshot: Snapshot) -> Iterator[Callable[..., TorchEngine]]:
    """Makes engines, and closes them in the end."""
    opened: list[TorchEngine] = []

    def make(**limits: int) -> TorchEngine:
        opened.append(TorchEngine(load_gemma(gemma_snapshot), gemma_snapshot, limits=EngineLimits(**limits)))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture(scope="session")
def drawings() -> list[np.ndarray]:
    """Four noisy grey squares, uint8 [40, 40, 3]."""
    rng = np.random.default_rng(0)
    return [np.repeat(rng.integers(0, 256, (40, 40, 1), np.uint8), 3, axis=2) for _ in range(4)]
