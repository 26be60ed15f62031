"""Rebuild both phantom models from a seed: draw, train MedSigLIP, train MedGemma, score, write manifests."""

import logging
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from medport_local.phantom import Family
from medport_local.phantom.manifest import replace_folder, write_manifest
from medport_local.phantom.score import SCORE_SEED, score
from medport_local.phantom.train_gemma import train_gemma
from medport_local.phantom.train_siglip import train_siglip
from medport_local.phantom.view import gallery

CODE_VERSION = "1"
"""Raised whenever drawings, texts or training change, so that a manifest says which code made it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything the weights depend on besides the code and the libraries."""

    seed: int = 0
    drawings: int = 24_000
    siglip_steps: int = 1_500
    gemma_steps: int = 1_000

    def scaled(self, factor: float) -> "Recipe":
        """The same recipe with other numbers of steps; what it gives is then another model."""
        return Recipe(
            self.seed,
            self.drawings,
            max(1, round(self.siglip_steps * factor)),
            max(1, round(self.gemma_steps * factor)),
        )


def train(out: Path, recipe: Recipe, *, threads: int = 2, scored: int = 600) -> None:
    """Write ``medsiglip-phantom`` and ``medgemma-phantom`` under ``out``, each replaced in one move.

    The number of steps is fixed, never the time, so that a slow machine gives the same model later.
    """
    torch.set_num_threads(threads)
    started = time.monotonic()
    drawn = gallery(recipe.drawings, _drawing_seed(recipe.seed), workers=threads)
    minutes = {"drawing": _minutes(started)}
    logger.info("drew %d pictures in %.1f min", recipe.drawings, minutes["drawing"])

    begun = time.monotonic()
    siglip_folder = _empty(out / "medsiglip-phantom.new")
    siglip = train_siglip(drawn, siglip_folder, steps=recipe.siglip_steps, seed=recipe.seed)
    minutes["medsiglip"] = _minutes(begun)

    begun = time.monotonic()
    gemma_folder = _empty(out / "medgemma-phantom.new")
    train_gemma(drawn, siglip, gemma_folder, steps=recipe.gemma_steps, seed=recipe.seed)
    minutes["medgemma"] = _minutes(begun)
    minutes["total"] = _minutes(started)

    folders: dict[Family, Path] = {"medsiglip": siglip_folder, "medgemma": gemma_folder}
    for family, folder in folders.items():
        finish(out, folder, family, recipe, minutes=minutes, threads=threads, scored=scored)
    scoring = _minutes(started) - minutes["total"]
    logger.info("trained in %.1f min, scored in %.1f min", minutes["total"], scoring)


def finish(
    out: Path,
    folder: Path,
    family: Family,
    recipe: Recipe,
    *,
    minutes: dict[str, float],
    threads: int,
    scored: int,
) -> None:
    """Score a finished folder, write its manifest and move it into place."""
    scores = score(folder, family, count=scored)
    made: dict[str, object] = {
        "seed": recipe.seed,
        "drawings": recipe.drawings,
        "steps": recipe.siglip_steps if family == "medsiglip" else recipe.gemma_steps,
        "code_version": CODE_VERSION,
        "minutes": {name: round(value, 1) for name, value in minutes.items()},
        "threads": threads,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "scored_on": f"{scored} fresh drawings per language, seed {SCORE_SEED}",
    }
    write_manifest(folder, family, made=made, scores=scores)
    replace_folder(folder, out / f"{family}-phantom")


def _drawing_seed(seed: int) -> int:
    """Training draws from even seeds only, scoring from odd ones: no drawing is ever in both."""
    return 2 * seed


def _minutes(since: float) -> float:
    return (time.monotonic() - since) / 60


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
