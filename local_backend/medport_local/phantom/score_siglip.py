"""Score a MedSigLIP snapshot: zero-shot findings, side, and text-to-image retrieval, per language."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import SiglipModel, SiglipTokenizer

from medport_local.phantom import words
from medport_local.phantom.batches import FINDINGS, to_pixel_values
from medport_local.phantom.draw import Attributes, Side
from medport_local.phantom.train_siglip import text_ids
from medport_local.phantom.view import Gallery
from medport_local.phantom.words import Language

Scores = dict[str, float | dict[str, float]]

TEMPLATES: dict[Language, str] = {"en": "a chest radiograph showing {}", "zh": "胸部X光顯示{}"}


@torch.inference_mode()
def score_siglip(folder: Path, gallery: Gallery, language: Language) -> Scores:
    """Top-1 by label prompts (in the template and bare), side by sentence pairs, recall@1 of the queries."""
    model = SiglipModel.from_pretrained(folder).train(False)
    tokenizer = SiglipTokenizer.from_pretrained(folder)
    images = _image_vectors(model, gallery)
    labels = [words.NAMES[language][finding][0] for finding in FINDINGS]
    truth = np.array([FINDINGS.index(attributes.finding) for attributes in gallery.attributes])
    scores: Scores = {}
    for name, prompts in (
        ("zero_shot", [TEMPLATES[language].format(label) for label in labels]),
        ("zero_shot_bare_label", labels),
    ):
        similarity = images @ _text_vectors(model, tokenizer, prompts).T
        chosen = similarity.argmax(-1).numpy()
        scores[name] = float((chosen == truth).mean())
        scores[f"{name}_per_class"] = {
            finding.value: float((chosen[truth == number] == number).mean())
            for number, finding in enumerate(FINDINGS)
        }
        if name == "zero_shot":
            sure = torch.sigmoid(similarity * model.logit_scale.exp() + model.logit_bias).numpy()
            scores["probability_of_the_truth_mean"] = float(sure[np.arange(len(truth)), truth].mean())
            scores["probability_of_others_mean"] = float(
                (sure.sum(-1) - sure[np.arange(len(truth)), truth]).mean() / (len(FINDINGS) - 1)
            )
    scores["side"] = _side_score(model, tokenizer, images, gallery.attributes, language)
    queries = words.queries(language)
    texts = _text_vectors(model, tokenizer, [query.text for query in queries])
    found = (texts @ images.T).argmax(-1).tolist()
    hits = [query.fits(gallery.attributes[index]) for query, index in zip(queries, found, strict=True)]
    scores["recall_at_1"] = float(np.mean(hits))
    scores["recall_sentences"] = float(len(queries))
    return scores


def _side_score(
    model: SiglipModel,
    tokenizer: SiglipTokenizer,
    images: Tensor,
    shown: list[Attributes],
    language: Language,
) -> float:
    """Share of sided drawings for which the sentence with the true side is nearer than its mirror."""
    hits = []
    for finding in FINDINGS:
        rows = [row for row, each in enumerate(shown) if each.finding is finding and each.side is not None]
        if rows:
            pair = [words.phrase(Attributes(finding, side), language) for side in Side]
            nearer = (images[rows] @ _text_vectors(model, tokenizer, pair).T).argmax(-1).tolist()
            hits += [list(Side)[side] == shown[row].side for side, row in zip(nearer, rows, strict=True)]
    return float(np.mean(hits))


def _image_vectors(model: SiglipModel, gallery: Gallery) -> Tensor:
    vectors = []
    for part in torch.split(torch.from_numpy(gallery.pixels), 200):
        vectors.append(model.get_image_features(pixel_values=to_pixel_values(part)).pooler_output)
    return functional.normalize(torch.cat(vectors), dim=-1)


def _text_vectors(model: SiglipModel, tokenizer: SiglipTokenizer, texts: list[str]) -> Tensor:
    output = model.get_text_features(input_ids=text_ids(tokenizer, texts)).pooler_output
    return functional.normalize(output, dim=-1)
