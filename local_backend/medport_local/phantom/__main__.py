"""``python -m medport_local.phantom train`` rebuilds both models, ``score`` scores the shipped ones."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import get_args

from medport_local.phantom import Family, weights_dir


def main(arguments: list[str] | None = None) -> int:
    """Parse, run one command, and give the exit code."""
    options = _parser().parse_args(arguments)
    # Everything needed is on disk; a hub id by mistake must fail at once.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if options.command == "train":
        return _train(options)
    return _score(options)


def _train(options: argparse.Namespace) -> int:
    from medport_local.phantom.train import Recipe, train

    recipe = Recipe(seed=options.seed)
    if options.minutes is not None:
        recipe = recipe.scaled(options.minutes / EXPECTED_MINUTES)
    train(options.out, recipe, threads=options.threads)
    return 0


def _score(options: argparse.Namespace) -> int:
    import torch

    from medport_local.phantom.score import missed, score, table

    torch.set_num_threads(options.threads)
    short = []
    for family in get_args(Family):
        scores = score(weights_dir(family), family, count=options.count, seed=options.seed)
        print(table(family, scores), end="\n\n")
        for language, reached in scores.items():
            short += [f"{family} {language}: {line}" for line in missed(family, reached)]
    print("\n".join(short) or "every bar is reached")
    return 1 if short else 0


EXPECTED_MINUTES = 30.0
"""What the full recipe takes on two cores."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m medport_local.phantom", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="rebuild both models from a seed")
    training.add_argument("--out", type=Path, default=weights_dir("medgemma").parent)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument(
        "--minutes",
        type=float,
        help=f"scale the number of steps; about {EXPECTED_MINUTES:.0f} minutes as it is",
    )
    scoring = commands.add_parser("score", help="score the shipped weights on fresh drawings")
    scoring.add_argument("--count", type=int, default=600)
    scoring.add_argument("--seed", type=int, default=20_240_601)
    return parser


if __name__ == "__main__":
    sys.exit(main())
