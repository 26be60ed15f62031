"""Zero-shot classification: labels and templates → prompts; embeddings → logits and probabilities.

Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023 (logit = scale · cos + bias);
MedSigLIP model card (prompt embeddings averaged per class).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medport._call import Flow
from medport.errors import InputError, MedportError, ProtocolError
from medport.results import Classification, Classifications, Embeddings, Float32, Score
from medport.tasks import embed
from medport.tasks.chat import text

Labels = Sequence[str] | Mapping[str, Sequence[str]]
DEFAULT_TEMPLATES = ("{}",)


def classify(
    instances: Sequence[bytes | MedportError], labels: Labels, templates: Sequence[str]
) -> Flow[Classifications]:
    """The job: embed the prompts, embed the images, compare.

    Raises:
        InputError: no labels, one twice, or a template without ``{}``.
    """
    names, prompts = _prompts(labels, templates)
    flat = [prompt for group in prompts for prompt in group]
    texts = yield from embed.embed(embed.text_instances(flat, "labels"), "labels")
    if texts.errors:
        raise next(iter(texts.errors.values()))
    found = yield from embed.embed(instances, "images")
    if found.vectors.shape[1] != texts.vectors.shape[1]:
        raise ProtocolError("embeddings of images and of texts have different lengths", field="embedding")
    logits = _logits(found, _means(texts.vectors, prompts))
    items = tuple(
        None if i in found.errors else Classification(_scores(names, row), found.provenance)
        for i, row in enumerate(logits)
    )
    return Classifications(items, found.errors, found.provenance)


def _prompts(labels: Labels, templates: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    if isinstance(labels, str) or not labels:
        raise InputError("labels must be a list with at least one label", field="labels", remedy='["a", "b"]')
    names = [text(label, f"labels[{i}]") for i, label in enumerate(labels)]
    if len(set(names)) != len(names):
        raise InputError("a label stands there twice", field="labels", remedy="give each once")
    if isinstance(templates, str) or not templates or not all("{}" in t for t in templates):
        raise InputError(
            "each template needs a {} where the label goes", field="templates", remedy='["an X-ray with {}"]'
        )
    if isinstance(labels, Mapping):
        groups = [[p] if isinstance(p, str) else list(p) for p in labels.values()]
        if not all(groups):
            raise InputError("a label has no prompts", field="labels", remedy="give each at least one")
        return names, groups
    return names, [[template.replace("{}", name) for template in templates] for name in names]


def _means(vectors: Float32, prompts: Sequence[Sequence[str]]) -> Float32:
    """float32 ``[labels, d]``: the mean of each label's prompt vectors, of length one again."""
    ends = np.cumsum([len(group) for group in prompts])[:-1]
    means = np.stack([part.mean(axis=0) for part in np.split(vectors, ends)])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def _logits(found: Embeddings, means: Float32) -> Float32:
    return np.asarray(found.logit_scale * (found.vectors @ means.T) + found.logit_bias, np.float32)


def _scores(names: Sequence[str], logits: Float32) -> tuple[Score, ...]:
    wide = logits.astype(np.float64)
    sigmoid = np.where(wide >= 0, 1 / (1 + np.exp(-np.abs(wide))), 1 - 1 / (1 + np.exp(-np.abs(wide))))
    share = np.exp(wide - wide.max())
    share /= share.sum()
    order = np.argsort(-wide, kind="stable")
    return tuple(Score(names[i], float(wide[i]), float(sigmoid[i]), float(share[i])) for i in order)
