"""Real weights: Gemma 3 270M, bfloat16, text only, in a directory that ``MEDPORT_GEMMA_270M`` names."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

# Read at import: tests run without the variables of whoever runs them.
WEIGHTS = os.environ.get("MEDPORT_GEMMA_270M")
MISSING = "MEDPORT_GEMMA_270M does not name a directory of weights"


def copy_to(folder: Path) -> Path:
    """The weights with what MedGemma has and the base model lacks: a chat template, and names of image tokens."""
    assert WEIGHTS is not None, MISSING
    shutil.copytree(WEIGHTS, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)  # where the weights come from a quantised file
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    # MedGemma's tokenizers have these also where the model takes text only.
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<unused6241>"}
    tokenizer["extra_special_tokens"] = names
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}")
    return folder
