"""The shipped weights against the bars, on drawings that neither training nor tuning has seen.

600 drawings per language for MedSigLIP. MedGemma describes 250 per language here, so that the test stays
near a minute; each bar is lowered by two standard deviations of such a share over 250 (0.028 at 0.95).
The manifest holds the figures over 600, which must reach the bars as they are.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from medport_local.phantom import weights_dir, words
from medport_local.phantom.draw import Attributes, Drawing, Finding, render, sample
from medport_local.phantom.manifest import read_manifest
from medport_local.phantom.view import gallery, pad_to_square
from medport_local.phantom.words import LANGUAGES, Language

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

FRESH_SEED = 5_550_001
GEMMA_DRAWINGS = 250

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def offline() -> None:
    torch.set_num_threads(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("family", ["medgemma", "medsiglip"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_manifest_states_scores_that_reach_every_bar(family: str, language: Language) -> None:
    from medport_local.phantom.score import missed

    known = "medgemma" if family == "medgemma" else "medsiglip"
    stated = read_manifest(weights_dir(known))["scores"][language]
    scores = {name: value for name, value in stated.items() if isinstance(value, float | Mapping)}

    assert not missed(known, scores)


@pytest.mark.parametrize("language", LANGUAGES)
def test_medsiglip_reaches_its_bars_on_fresh_drawings(language: Language) -> None:
    from medport_local.phantom.score import missed
    from medport_local.phantom.score_siglip import score_siglip

    fresh = gallery(600, FRESH_SEED + 2 * LANGUAGES.index(language))

    assert not missed("medsiglip", score_siglip(weights_dir("medsiglip"), fresh, language))


@pytest.mark.parametrize("language", LANGUAGES)
def test_medgemma_reaches_its_bars_on_fresh_drawings(language: Language) -> None:
    from medport_local.phantom.score import BARS
    from medport_local.phantom.score_gemma import GemmaScorer

    fresh = gallery(GEMMA_DRAWINGS, FRESH_SEED + 100 + 2 * LANGUAGES.index(language))
    scorer = GemmaScorer(weights_dir("medgemma"), fresh)

    scores = scorer.reports(language) | scorer.places(language) | scorer.yes_no(language)
    scores |= scorer.thinking(language, count=50)

    for name, bar in BARS["medgemma"].items():
        value = scores[name]
        assert isinstance(value, float)
        assert value >= bar - 2 * (bar * (1 - bar) / GEMMA_DRAWINGS) ** 0.5, name
    assert scores["thinking_form"] == 1.0


@pytest.mark.parametrize("size_px", [112, 200, 333, 512, 1024])
def test_drawings_of_any_size_are_classified_through_the_processor(size_px: int) -> None:
    rng = np.random.default_rng(FRESH_SEED + size_px)
    asked = [sample(rng, finding) for finding in Finding for _ in range(3)]
    drawings = [render(attributes, rng, size_px) for attributes in asked]

    named = classified([drawing.pixels for drawing in drawings])

    assert np.mean([name is each.finding for name, each in zip(named, asked, strict=True)]) >= 0.9


@pytest.mark.parametrize("trim", ["sides", "below"])
def test_padded_drawings_are_classified(trim: str) -> None:
    rng = np.random.default_rng(FRESH_SEED)
    asked = [sample(rng, finding) for finding in Finding for _ in range(4)]
    pixels = []
    for attributes in asked:
        drawing = render(attributes, rng, 240)
        cut = drawing.pixels[:, 24:-24] if trim == "sides" else drawing.pixels[:-40]
        pixels.append(pad_to_square(Drawing(cut, None)).pixels)

    assert np.mean([name is each.finding for name, each in zip(classified(pixels), asked, strict=True)]) >= 0.9


def classified(pictures: list[np.ndarray]) -> list[Finding]:
    """The finding whose English prompt is nearest, by the plain path a user of transformers would take."""
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    from medport_local.phantom.score_siglip import TEMPLATES

    model = AutoModel.from_pretrained(weights_dir("medsiglip"))
    processor = AutoProcessor.from_pretrained(weights_dir("medsiglip"), backend="pil")
    prompts = [TEMPLATES["en"].format(words.NAMES["en"][finding][0]) for finding in Finding]
    inputs = processor(
        text=prompts,
        images=[Image.fromarray(picture).convert("RGB") for picture in pictures],
        padding="max_length",
        return_tensors="pt",
    )
    with torch.inference_mode():
        logits = model(**inputs).logits_per_image
    return [list(Finding)[column] for column in logits.argmax(-1).tolist()]


@pytest.mark.parametrize(
    ("folder", "auto_class"),
    [(weights_dir("medsiglip"), "AutoModel"), (weights_dir("medgemma"), "AutoModelForImageTextToText")],
    ids=["medsiglip", "medgemma"],
)
def test_a_snapshot_loads_with_every_key_in_its_place(folder: Path, auto_class: str) -> None:
    import transformers

    _, loading = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)

    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_medgemma_weights_have_the_published_key_names() -> None:
    from safetensors import safe_open

    with safe_open(weights_dir("medgemma") / "model.safetensors", "pt") as stored:
        names = set(stored.keys())

    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names
    assert "language_model.model.embed_tokens.weight" in names
    assert "multi_modal_projector.mm_input_projection_weight" in names
    assert not [name for name in names if name.startswith(("model.", "vision_tower.embeddings"))]


def test_special_tokens_have_the_published_ids() -> None:
    from transformers import AutoProcessor

    tokenizer = AutoProcessor.from_pretrained(weights_dir("medgemma"), backend="pil").tokenizer
    named = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<unused94>",
        "<unused95>",
        "<start_of_turn>",
        "<end_of_turn>",
    ]

    assert tokenizer.convert_tokens_to_ids(named) == [0, 1, 2, 3, 100, 101, 105, 106]
    kept = tokenizer.decode(tokenizer("<unused94>thought\nx<unused95>y").input_ids, skip_special_tokens=True)
    assert kept == "<unused94>thought\nx<unused95>y"
    assert type(tokenizer).__name__ == "GemmaTokenizer"


def test_texts_for_medsiglip_are_padded_to_64_with_the_end_token() -> None:
    from transformers import AutoProcessor

    tokenizer = AutoProcessor.from_pretrained(weights_dir("medsiglip"), backend="pil").tokenizer
    ids = tokenizer(["A Nodule!", "a nodule"], padding="max_length").input_ids

    assert len(ids[0]) == 64
    assert ids[0] == ids[1]
    assert tokenizer.pad_token == "</s>"
    assert ids[0][-1] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_the_chat_template_writes_what_was_trained() -> None:
    from transformers import AutoProcessor

    from medport_local.phantom.dialogues import IMAGE, Dialogue, Turn

    processor = AutoProcessor.from_pretrained(weights_dir("medgemma"), backend="pil")
    dialogue = Dialogue([Turn(f"{IMAGE}Which side?", "The left side."), Turn("Sure?", "")], [0], "Be brief.")
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " Which side? "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "The left side."}]},
        {"role": "user", "content": "Sure?"},
    ]

    written = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    first, second = dialogue.prompts()
    assert written == f"{first}The left side.<end_of_turn>{second}"


@pytest.mark.parametrize("roles", [("assistant",), ("user", "user"), ("user", "system")])
def test_the_chat_template_refuses_turns_that_do_not_alternate(roles: tuple[str, ...]) -> None:
    import jinja2
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(weights_dir("medgemma"), backend="pil")
    messages = [{"role": role, "content": "x"} for role in roles]

    with pytest.raises(jinja2.TemplateError, match="alternate"):
        processor.apply_chat_template(messages, tokenize=False)


def test_medgemma_reports_through_processor_and_generate() -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    attributes = Attributes(Finding.CARDIOMEGALY)
    picture = Image.fromarray(render(attributes, np.random.default_rng(FRESH_SEED), 256).pixels).convert("RGB")
    model = AutoModelForImageTextToText.from_pretrained(weights_dir("medgemma"), dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(weights_dir("medgemma"), backend="pil")
    content = [
        {"type": "image", "image": picture},
        {"type": "text", "text": "Describe this chest radiograph."},
    ]

    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    written = model.generate(**inputs, max_new_tokens=60, do_sample=False)

    text = processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == words.report(attributes, "en")
