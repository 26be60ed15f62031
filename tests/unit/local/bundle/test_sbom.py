"""The bill of materials: valid CycloneDX 1.6, and it says what is in the bundle."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from support.site_parts import build_wheel, provider_mirror

from medport_local.bundle.providers import read_mirror
from medport_local.bundle.sbom import Materials, Model, bill_of
from medport_local.bundle.wheels import read_wheel
from medport_local.snapshot_file import FileEntry

REVISION = "290dda5eeb90e4ea3a04f0c0a2c0b1d2e3f40516"
CREATED = datetime(2026, 11, 26, 12, tzinfo=UTC)


def _materials(folder: Path, created_at: datetime = CREATED) -> Materials:
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    demo = read_wheel(build_wheel(wheels, "demo", requires=["leaf>=1", "absent"], licence="Apache-2.0"))
    leaf = read_wheel(build_wheel(wheels, "leaf", licence="Apache-2.0 OR BSD-3-Clause"))
    provider_mirror(folder / "providers")
    model = Model(
        model_id="google/medgemma-4b-it",
        revision=REVISION,
        snapshot_sha256="5" * 64,
        files={"model.safetensors": FileEntry(sha256="6" * 64, size_bytes=7)},
        terms="Health AI Developer Foundations",
        terms_url="https://terms.example/hai-def",
        from_hub=True,
    )
    return Materials(
        medport_version="0.1.0",
        created_at=created_at,
        wheels=[(demo, "1" * 64), (leaf, "2" * 64)],
        models=[model],
        images={"serving": "sha256:" + "3" * 64},
        archives=read_mirror(folder / "providers").archives,
    )


def _component(bill: Any, kind: str, name: str) -> Any:
    (found,) = [each for each in bill["components"] if (each["type"], each["name"]) == (kind, name)]
    return found


def test_bill_is_valid_by_the_librarys_own_validator(tmp_path: Path) -> None:
    bill = bill_of(_materials(tmp_path))

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill.decode()) is None


def test_bill_of_nothing_is_valid() -> None:
    bill = bill_of(Materials(medport_version="0.1.0", created_at=CREATED))

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill.decode()) is None


def test_bill_names_packages_models_images_and_providers_with_their_hashes(tmp_path: Path) -> None:
    bill = json.loads(bill_of(_materials(tmp_path)))

    demo = _component(bill, "library", "demo")
    assert (demo["purl"], demo["hashes"][0]["content"]) == ("pkg:pypi/demo@1.0", "1" * 64)
    assert demo["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert _component(bill, "library", "leaf")["licenses"] == [{"expression": "Apache-2.0 OR BSD-3-Clause"}]
    model = _component(bill, "machine-learning-model", "google/medgemma-4b-it")
    assert (model["version"], model["purl"]) == (REVISION, f"pkg:huggingface/google/medgemma-4b-it@{REVISION}")
    assert model["licenses"][0]["license"]["name"] == "Health AI Developer Foundations"
    assert [(each["name"], each["hashes"][0]["content"]) for each in model["components"]] == [
        ("model.safetensors", "6" * 64)
    ]
    assert _component(bill, "container", "serving")["hashes"][0]["content"] == "3" * 64
    provider = _component(bill, "application", "terraform-provider-google")
    hashes = [each["value"] for each in provider["properties"] if each["name"] == "medport:terraform_hash"]
    assert sorted(each[:3] for each in hashes) == ["h1:", "zh:"]


def test_bill_says_which_package_needs_which(tmp_path: Path) -> None:
    bill = json.loads(bill_of(_materials(tmp_path)))

    needs = {each["ref"]: each.get("dependsOn", []) for each in bill["dependencies"]}

    assert needs["pkg:pypi/demo@1.0"] == ["pkg:pypi/leaf@1.0"]
    assert len(needs["bundle"]) == 5


def test_equal_materials_give_equal_bytes_and_others_another_serial_number(tmp_path: Path) -> None:
    first, same = bill_of(_materials(tmp_path / "a")), bill_of(_materials(tmp_path / "b"))
    later = bill_of(_materials(tmp_path / "c", datetime(2026, 11, 27, tzinfo=UTC)))

    assert first == same
    assert json.loads(first)["serialNumber"] != json.loads(later)["serialNumber"]
