"""Which published model a configuration describes, and what may go by a published model's name."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3Config, Gemma3TextConfig, SiglipConfig

from medport.errors import VerificationError
from medport_local import model_identity
from medport_local.model_identity import (
    KINDS,
    KNOWN_MODELS,
    KnownModel,
    check_identity,
    identify,
    kind_of,
    known_model,
)
from medport_local.phantom import weights_dir
from medport_local.snapshot import open_snapshot

CLASSES = {"gemma3": Gemma3Config, "gemma3_text": Gemma3TextConfig, "siglip": SiglipConfig}
by_name = pytest.mark.parametrize("known", KNOWN_MODELS, ids=lambda known: known.model_id)


def published(known: KnownModel) -> dict[str, Any]:
    """A configuration of the shape that is known."""
    config: dict[str, Any] = {"model_type": known.model_type}
    for part, values in known.shape.items():
        (config.setdefault(part, {}) if part else config).update(values)
    return config


def values(known: KnownModel) -> Iterator[tuple[str, str]]:
    return ((part, key) for part, keys in known.shape.items() for key in keys)


@by_name
def test_published_shape_is_let_through_under_its_name_and_found_without_it(known: KnownModel) -> None:
    config = published(known)

    check_identity(known.model_id, config)
    named = config | {"_name_or_path": known.model_id}

    assert identify(named, kind_of(config), Path("anywhere")) == known.model_id


@pytest.mark.parametrize(
    ("known", "part", "key"),
    [
        pytest.param(known, part, key, id=f"{known.model_id} {part}.{key}")
        for known in KNOWN_MODELS
        for part, key in values(known)
    ],
)
def test_every_value_of_a_published_shape_is_held(known: KnownModel, part: str, key: str) -> None:
    config = copy.deepcopy(published(known))
    held = config[part] if part else config
    expected = held[key]
    held[key] = expected + 1
    place = f"{part}.{key}" if part else key

    with pytest.raises(VerificationError) as fault:
        check_identity(known.model_id, config)

    assert fault.value.field == "config.json"
    assert f"{place} is {expected + 1}, and {known.model_id} has {expected}" in fault.value.message


@pytest.mark.parametrize("wrong", ["2560", 2560.0, True, None, [2560], "x" * 500])
def test_value_that_is_no_whole_number_is_refused_and_shown_shortly(wrong: object) -> None:
    known = KNOWN_MODELS[0]
    config = published(known)
    config["text_config"]["hidden_size"] = wrong

    with pytest.raises(VerificationError, match=r"text_config\.hidden_size is ") as fault:
        check_identity(known.model_id, config)

    assert len(fault.value.message) < 200


@pytest.mark.parametrize("missing", ["text_config", "vision_config"])
def test_part_that_is_missing_means_the_library_s_defaults_and_is_refused(missing: str) -> None:
    known = KNOWN_MODELS[0]
    config = published(known)
    del config[missing]

    with pytest.raises(VerificationError, match=rf"{missing}\.hidden_size"):
        check_identity(known.model_id, config)


def test_value_left_out_means_the_library_s_default() -> None:
    known = known_model("google/medgemma-4b-it")
    assert known is not None
    config = published(known)
    for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"):
        del config["text_config"][key]

    check_identity(known.model_id, config)


def test_other_kind_of_model_under_a_published_name_is_refused() -> None:
    with pytest.raises(VerificationError, match="model_type is 'siglip', and google/medgemma-4b-it is a gemma3"):
        check_identity("google/medgemma-4b-it", published(KNOWN_MODELS[-1]))


@pytest.mark.parametrize("name", ["Google/MedGemma-4B-it", "google/medgemma-4b-it int8"])
def test_other_spelling_and_a_derived_name_are_held_to_the_same_shape(name: str) -> None:
    config = published(KNOWN_MODELS[0])
    config["text_config"]["num_hidden_layers"] = 6

    with pytest.raises(VerificationError, match="num_hidden_layers is 6"):
        check_identity(name, config)


@pytest.mark.parametrize(
    "name", ["medport/medgemma-phantom", "someone/medgemma-4b-it", "", "google/gemma-3-4b-it"]
)
def test_name_that_is_not_known_says_nothing_of_the_shape(name: str) -> None:
    check_identity(name, {"model_type": "gemma3"})


@pytest.mark.parametrize(
    ("name", "int8"), [("google/medgemma-4b-it", True), ("google/medgemma-4b-it int8", False)]
)
def test_name_of_a_published_model_says_whether_its_weights_are_int8(name: str, int8: bool) -> None:
    with pytest.raises(VerificationError, match="weights of int8"):
        check_identity(name, published(KNOWN_MODELS[0]), int8=int8)

    check_identity(name, published(KNOWN_MODELS[0]), int8=not int8)


def test_what_a_left_out_key_means_is_what_the_library_takes() -> None:
    # The data is written down so that no torch is needed to judge a configuration.
    for model_type, parts in model_identity._DATA["left_out"].items():
        whole = CLASSES[model_type]()
        for part, defaults in parts.items():
            config = getattr(whole, part) if part else whole
            assert {key: getattr(config, key) for key in defaults} == defaults, (model_type, part)


def test_every_known_value_has_a_meaning_when_it_is_left_out() -> None:
    for known in KNOWN_MODELS:
        left_out = model_identity._DATA["left_out"][known.model_type]
        assert all(key in left_out[part] for part, key in values(known))


def test_known_models_have_terms_a_family_and_limits() -> None:
    assert len({known.model_id.casefold() for known in KNOWN_MODELS}) == len(KNOWN_MODELS)
    for known in KNOWN_MODELS:
        assert known.family == KINDS[known.model_type].family
        assert known.terms.url.startswith("https://")
        assert known.max_context == (64 if known.family == "medsiglip" else 131_072)
        assert known.image_tokens == (256 if known.model_type == "gemma3" else None)


# Whole snapshots


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    return Path(shutil.copytree(weights_dir("medgemma"), tmp_path / "snapshot"))


def rename(folder: Path, **changes: object) -> None:
    """Other words in the manifest, which its own hashes do not cover."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def test_small_model_that_calls_itself_a_published_one_is_refused(phantom: Path) -> None:
    rename(phantom, repo_id="google/medgemma-4b-it")

    with pytest.raises(VerificationError, match="mm_tokens_per_image is 16, and google/medgemma-4b-it has 256"):
        open_snapshot(phantom)


def test_small_model_that_says_it_was_made_from_a_published_one_is_refused(phantom: Path) -> None:
    parent = {"model_id": "google/medgemma-4b-it", "revision": None, "snapshot_sha256": "0" * 64}
    rename(phantom, parent=parent)

    with pytest.raises(VerificationError, match="google/medgemma-4b-it has 256"):
        open_snapshot(phantom)


def test_phantom_keeps_its_own_name(phantom: Path) -> None:
    assert open_snapshot(phantom).model_id == "medport/medgemma-phantom"
