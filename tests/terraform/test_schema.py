"""Where the stand-in's schema comes from: what is read of the package, and that a changed package is noticed."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.configurations import Cli
from support.provider import WheelMissing, generated, wheel
from support.provider.overlay import OVERLAY, Rule
from support.provider.schema import load
from support.provider.wanted import WANTED

Json = dict[str, Any]
SOME = "google_some_thing"
SCRIPT = """
function someThingDiskToHclTerraform(struct) {
    const attrs = {
        size_gb: {
            value: cdktn.numberToHclTerraform(struct.sizeGb),
            isBlock: false,
            type: "simple",
            storageClassType: "number",
        },
    };
}
class SomeThingDiskOutputReference extends cdktn.ComplexObject {
    // size_gb - computed: false, optional: false, required: true
    _sizeGb;
    get sizeGb() {
        return this.getNumberAttribute('size_gb');
    }
}
class SomeThing extends cdktn.TerraformResource {
    constructor() { providerVersion: '1.2.3' }
    // name - computed: false, optional: false, required: true
    _name;
    get name() {
        return this.getStringAttribute('name');
    }
    // labels - computed: true, optional: false, required: false
    get labels() {
        return this.getStringMapAttribute('labels');
    }
    // disk - computed: false, optional: true, required: false
    _disk = new SomeThingDiskList(this, "disk", true);
    // =========
    synthesizeHclAttributes() {
        const attrs = {
            name: {
                value: cdktn.stringToHclTerraform(this._name),
                isBlock: false,
                type: "simple",
                storageClassType: "string",
            },
            disk: {
                value: cdktn.listMapperHcl(someThingDiskToHclTerraform, true)(this._disk.internalValue),
                isBlock: true,
                type: "set",
                storageClassType: "SomeThingDiskList",
            },
        };
    }
}
//# sourceMappingURL=data:application/json;base64,AAAA"""


@pytest.fixture
def packed(tmp_path: Path) -> Callable[[str], Path]:
    """A package of that form with one type, of this script."""

    def pack(script: str) -> Path:
        inner = io.BytesIO()
        with tarfile.open(fileobj=inner, mode="w:gz") as files:
            entry = tarfile.TarInfo("package/lib/some-thing/index.js")
            entry.size = len(script.encode())
            files.addfile(entry, io.BytesIO(script.encode()))
        with zipfile.ZipFile(tmp_path / "some.whl", "w") as archive:
            archive.writestr("some/provider.jsii.tgz", inner.getvalue())
        return tmp_path / "some.whl"

    return pack


def test_names_types_and_blocks_are_read(packed: Callable[[str], Path]) -> None:
    found = generated.read(packed(SCRIPT), [SOME], provider_version="1.2.3")

    members = found[SOME]["members"]
    assert {name: each.get("type") for name, each in members.items()} == {
        "name": "string",
        "labels": ["map", "string"],
        "disk": None,
    }
    assert [name for name, each in members.items() if each["required"]] == ["name"]
    assert (members["disk"]["nesting"], members["disk"]["max_items"]) == ("set", 0)
    assert members["disk"]["members"]["size_gb"]["type"] == "number"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1.2.3", "1.2.4", "not of provider"),
        ("// name - computed: false, optional: false, required: true", "// name", "no comment for name"),
        ("class SomeThingDiskOutputReference", "class Other", "no class SomeThingDiskOutputReference"),
        ("class SomeThing extends cdktn.TerraformResource", "class SomeThing extends cdktn.Other", "0 classes"),
        ("this.getStringMapAttribute('labels')", "this.labels", "type of labels"),
    ],
)
def test_changed_form_is_an_error_and_no_guess(
    packed: Callable[[str], Path], old: str, new: str, said: str
) -> None:
    script = SCRIPT.replace(old, new)
    assert script != SCRIPT

    with pytest.raises(generated.FormChanged, match=said):
        generated.read(packed(script), [SOME], provider_version="1.2.3")


def test_type_that_is_gone_is_an_error_that_names_it(packed: Callable[[str], Path]) -> None:
    with pytest.raises(generated.FormChanged, match="google_other_thing"):
        generated.read(packed(SCRIPT), [SOME, "google_other_thing"], provider_version="1.2.3")


def test_every_wanted_type_is_in_the_package(schema: Path) -> None:
    assert set(json.loads(schema.read_text())) == set(WANTED)


def test_rule_for_what_the_schema_has_not_is_an_error(schema: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "google_kms_key_ring"
    monkeypatch.setitem(OVERLAY, name, {"nmae": Rule(force_new=True)})

    with pytest.raises(ValueError, match="nmae"):
        load(schema)


def test_package_that_pip_cannot_bring_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(wheel, "REQUIREMENT", "cdktn-provider-google==0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    with pytest.raises(WheelMissing, match=r"pip cannot download cdktn-provider-google==0\.0\.0"):
        wheel.schema_file()


def test_package_with_another_hash_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "medport-tests" / "cdktn_provider_google-21.1.0-py3-none-any.whl"
    kept.parent.mkdir()
    kept.write_bytes(b"another")

    with pytest.raises(WheelMissing, match="sha256"):
        wheel.schema_file()

    assert not kept.exists()


def test_terraform_sees_the_schema(written: Callable[[str], Cli]) -> None:
    cli = written('resource "google_project_service" "it" {\n service = "aiplatform.googleapis.com"\n}\n')

    said = cli("providers", "schema", "-json").json()

    (found,) = said["provider_schemas"].values()
    endpoint = found["resource_schemas"]["google_vertex_ai_endpoint"]["block"]
    secret = found["resource_schemas"]["google_secret_manager_secret_version"]["block"]["attributes"]
    assert endpoint["attributes"]["name"] == {"type": "string", "description_kind": "plain", "required": True}
    # Of the timeout of a prediction the provider knows nothing: it is medport's.
    assert not [name for name in (*endpoint["attributes"], *endpoint["block_types"]) if "inference" in name]
    assert secret["secret_data_wo"]["write_only"] is True
    assert len(found["resource_schemas"]) == sum(name.startswith("google_") for name in WANTED)
