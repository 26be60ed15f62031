"""Small stand-ins for MedGemma and MedSigLIP, trained by this project on drawings. Not for medical use.

The drawings (``draw``) and texts (``words``) need only numpy and Pillow; training and scoring need torch.
"""

from pathlib import Path
from typing import Literal

Family = Literal["medgemma", "medsiglip"]

__all__ = ["Family", "weights_dir"]


def weights_dir(family: Family) -> Path:
    """The shipped snapshot of one family, in Hugging Face layout with a ``manifest.json``."""
    return Path(__file__).parent / "weights" / f"{family}-phantom"
