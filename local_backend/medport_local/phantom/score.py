"""Score phantom snapshots on fresh drawings and compare them with the bars they were accepted by."""

from collections.abc import Mapping
from pathlib import Path

from medport_local.phantom import Family, words
from medport_local.phantom.score_gemma import GemmaScorer
from medport_local.phantom.score_siglip import Scores, score_siglip
from medport_local.phantom.view import gallery
from medport_local.phantom.words import Language

SCORE_SEED = 90_001
"""Odd: training and tuning never draw from odd seeds of this size."""

WEAKEST_CLASS = 0.85
BARS: dict[Family, dict[str, float]] = {
    "medsiglip": {"zero_shot": 0.95, "recall_at_1": 0.95},
    "medgemma": {
        "report_finding": 0.95,
        "report_side": 0.90,
        "json_exact": 0.90,
        "box_form": 0.99,
        "box_iou": 0.40,
        "yes_no": 0.85,
    },
}
"""Least scores per language; of each score per class none may fall under ``WEAKEST_CLASS``."""


def score(folder: Path, family: Family, *, count: int = 600, seed: int = SCORE_SEED) -> dict[Language, Scores]:
    """All scores of one snapshot per language, each language on drawings of its own."""
    scores: dict[Language, Scores] = {}
    for number, language in enumerate(words.LANGUAGES):
        fresh = gallery(count, seed + 2 * number)
        if family == "medsiglip":
            scores[language] = score_siglip(folder, fresh, language)
        else:
            scores[language] = GemmaScorer(folder, fresh).score(language)
    return scores


def missed(family: Family, scores: Mapping[str, float | Mapping[str, float]]) -> list[str]:
    """The bars that the scores of one language do not reach, in words."""
    short = []
    for name, bar in BARS[family].items():
        value = scores.get(name)
        if isinstance(value, float) and value < bar:
            short.append(f"{name} {value:.3f} < {bar}")
    for name, value in scores.items():
        if isinstance(value, Mapping):
            short += [
                f"{name} {finding} {share:.3f} < {WEAKEST_CLASS}"
                for finding, share in value.items()
                if share < WEAKEST_CLASS
            ]
    return short


def table(family: Family, scores: Mapping[Language, Scores]) -> str:
    """The scores as text, one line each, languages side by side."""
    rows: list[tuple[str, list[str]]] = [(f"{family}-phantom", [str(language) for language in scores])]
    for name, value in scores["en"].items():
        if isinstance(value, Mapping):
            rows += [
                (f"  {name}: {finding}", [_cell(each, name, finding) for each in scores.values()])
                for finding in value
            ]
        else:
            rows.append((name, [_cell(each, name) for each in scores.values()]))
    return "\n".join(f"{name:<52}{''.join(f'{cell:>10}' for cell in cells)}" for name, cells in rows)


def _cell(scores: Scores, name: str, finding: str | None = None) -> str:
    value = scores[name]
    if isinstance(value, Mapping):
        value = value[finding or ""]
    return f"{value:.3f}"
