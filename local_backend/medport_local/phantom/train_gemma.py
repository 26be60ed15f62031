"""Train the MedGemma stand-in on dialogues; its vision tower is the trained MedSigLIP's and stays frozen."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    GemmaTokenizer,
    GenerationConfig,
    SiglipModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from medport_local.phantom.batches import augment, to_pixel_values
from medport_local.phantom.dialogues import IMAGE, Dialogue, DialogueMaker
from medport_local.phantom.optimise import Optimiser
from medport_local.phantom.tokenizers import CHAT_TEMPLATE, gemma_tokenizer
from medport_local.phantom.view import INPUT_PX, Gallery

HIDDEN = 128
IMAGE_TOKENS = 16
SINGLES_PER_STEP, COMPARISONS_PER_STEP, SLICES_PER_STEP = 48, 10, 8
MATRIX_RATE, OTHER_RATE = 5e-3, 2e-3
VIEWS = 2
"""Augmented versions of each drawing whose features are kept."""
END_OF_TURN = 106
IGNORED = -100

logger = logging.getLogger(__name__)


def train_gemma(
    gallery: Gallery, siglip: SiglipModel, folder: Path, *, steps: int, seed: int
) -> Gemma3ForConditionalGeneration:
    """Train on dialogues about the gallery and write model and processor to ``folder`` (bfloat16)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, 2))
    tokenizer = gemma_tokenizer()
    model = build_gemma(tokenizer, siglip)
    features = _features(model, gallery, rng)
    model.model.vision_tower.requires_grad_(False)
    maker = DialogueMaker(gallery, rng)
    encoder = DialogueEncoder(tokenizer)
    optimiser = Optimiser(
        [model], steps=steps, warmup=100, matrix_rate=MATRIX_RATE, other_rate=OTHER_RATE, weight_decay=0.02
    )
    started = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        # Two parts of similar length: one padded batch of both would be half padding.
        parts = [
            [maker.single() for _ in range(SINGLES_PER_STEP)],
            [maker.comparison() for _ in range(COMPARISONS_PER_STEP)]
            + [maker.slices() for _ in range(SLICES_PER_STEP)],
        ]
        batches = [encoder.encode(part) for part in parts]
        answers = sum(int((batch.labels != IGNORED).sum()) for batch in batches)
        losses = []
        for batch in batches:
            loss = _summed_loss(model, batch, features, rng)
            torch.autograd.backward(loss / answers)
            losses.append(loss.item() / int((batch.labels != IGNORED).sum()))
        optimiser.apply()
        if step % 50 == 0:
            elapsed = time.monotonic() - started
            logger.info("gemma step %d: single %.3f, several %.3f, %.0f s", step, *losses, elapsed)
    model.train(False)
    save_gemma(model, tokenizer, folder)
    return model


def build_gemma(tokenizer: GemmaTokenizer, siglip: SiglipModel) -> Gemma3ForConditionalGeneration:
    """A fresh Gemma 3 of 2.6 million parameters around a copy of the SigLIP vision tower."""
    vision_config: Any = siglip.config.vision_config
    vision = vision_config.to_dict() | {"vision_use_head": False}
    boi, eoi, soft = (
        tokenizer.convert_tokens_to_ids(token)
        for token in ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
    )
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": HIDDEN,
        "intermediate_size": 4 * HIDDEN,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        # heads x head_dim differs from the hidden size, as it does in the real model.
        "head_dim": 48,
        "query_pre_attn_scalar": 48,
        "sliding_window": 128,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    gemma_config: Any = Gemma3Config
    config = gemma_config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=boi,
        eoi_token_index=eoi,
        image_token_index=soft,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=[1, END_OF_TURN],
    )
    model = Gemma3ForConditionalGeneration(config)
    state = siglip.vision_model.state_dict()
    missing, _ = model.model.vision_tower.load_state_dict(state, strict=False)
    if missing:
        raise ValueError(f"the SigLIP tower lacks {missing[0]} and {len(missing) - 1} more")
    with torch.no_grad():
        # transformers leaves this matrix at zero, where an image would teach nothing.
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(0, 0.3 / HIDDEN**0.5)
    generation_config: Any = GenerationConfig
    model.generation_config = generation_config(
        bos_token_id=2, eos_token_id=[1, END_OF_TURN], pad_token_id=0, do_sample=False, max_new_tokens=256
    )
    return model


def save_gemma(model: Gemma3ForConditionalGeneration, tokenizer: GemmaTokenizer, folder: Path) -> None:
    """Write bfloat16 weights under the published checkpoint's key names, and the processor."""
    model.bfloat16().save_pretrained(folder)
    _publish_key_names(folder / "model.safetensors")
    image_processor = Gemma3ImageProcessorPil(
        size={"height": INPUT_PX, "width": INPUT_PX},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        resample=2,
        do_convert_rgb=True,
        image_seq_length=IMAGE_TOKENS,
    )
    tokenizer.padding_side = "left"
    Gemma3Processor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        image_seq_length=IMAGE_TOKENS,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def _publish_key_names(path: Path) -> None:
    """transformers 5 writes ``vision_tower.*``, published files have ``vision_tower.vision_model.*``."""
    with safe_open(path, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
    new, old = "vision_tower.", "vision_tower.vision_model."
    renamed = {
        name.replace(new, old, 1) if new in name and old not in name else name: tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, path, metadata={"format": "pt"})


@dataclass(frozen=True, slots=True)
class Batch:
    """Dialogues as tensors, right-padded."""

    ids: Tensor
    """int64 ``[dialogues, tokens]``."""
    attention: Tensor
    """1 where a token is, 0 at padding."""
    labels: Tensor
    """The ids of the answers; ``IGNORED`` elsewhere."""
    images: list[int]
    """Gallery indices in the order of their places."""


class DialogueEncoder:
    """Tokenises dialogues as the processor would: each image mark becomes a block of soft tokens."""

    def __init__(self, tokenizer: GemmaTokenizer) -> None:
        self._tokenizer = tokenizer
        self._block = f"\n\n{IMAGE}{'<image_soft_token>' * IMAGE_TOKENS}<end_of_image>\n\n"

    def encode(self, dialogues: list[Dialogue]) -> Batch:
        """One batch of all of them."""
        rows = [self._row(dialogue) for dialogue in dialogues]
        length = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for number, (row, answers) in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            attention[number, : len(row)] = 1
            labels[number, : len(row)] = torch.tensor(answers)
        return Batch(ids, attention, labels, [index for dialogue in dialogues for index in dialogue.images])

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """The ids up to where the first answer begins."""
        return self._ids(dialogue.prompts()[0].replace(IMAGE, self._block))

    def _row(self, dialogue: Dialogue) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        for prompt, turn in zip(dialogue.prompts(), dialogue.turns, strict=True):
            asked = self._ids(prompt.replace(IMAGE, self._block))
            answer = [*self._ids(turn.answer), END_OF_TURN]
            ids += asked + answer
            labels += [IGNORED] * len(asked) + answer
        return ids, labels

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids


def _features(model: Gemma3ForConditionalGeneration, gallery: Gallery, rng: np.random.Generator) -> Tensor:
    """What the frozen tower gives, computed once: float16 ``[drawings, VIEWS, patches, hidden]``."""
    started = time.monotonic()
    tower = model.model.vision_tower.train(False)
    views = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(gallery), 250):
            indices = list(range(start, min(start + 250, len(gallery))))
            pixels = torch.cat([augment(gallery, indices, rng)[0] for _ in range(VIEWS)])
            output = tower(to_pixel_values(pixels)).last_hidden_state.half()
            views.append(output.unflatten(0, (VIEWS, len(indices))).transpose(0, 1))
    logger.info("features of %d views, %.0f s", VIEWS * len(gallery), time.monotonic() - started)
    return torch.cat(views)


def _summed_loss(
    model: Gemma3ForConditionalGeneration, batch: Batch, features: Tensor, rng: np.random.Generator
) -> Tensor:
    """Cross-entropy summed over the answers' tokens; the head runs on these alone."""
    versions = torch.from_numpy(rng.integers(0, VIEWS, len(batch.images)))
    with torch.autocast("cpu", torch.bfloat16):
        chosen = features[torch.tensor(batch.images), versions].float()
        projected = model.model.multi_modal_projector(chosen)
        hidden = model.model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            token_type_ids=(batch.ids == model.config.image_token_id).long(),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=projected)},
            use_cache=False,
        ).last_hidden_state
        wanted = batch.labels[:, 1:] != IGNORED
        logits = model.lm_head(hidden[:, :-1][wanted])
    return functional.cross_entropy(logits.float(), batch.labels[:, 1:][wanted], reduction="sum")
