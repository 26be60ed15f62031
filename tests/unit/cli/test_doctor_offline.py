"""``medport doctor --offline``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.bundles import META, Keys

from medport import config
from medport.cli import packages
from medport.cli.offline import check_environment, check_packages, check_profile
from medport.errors import ConfigError, PolicyError
from medport_local.bundle.archive import Bundle, Item, write_bundle
from medport_local.bundle.install import install, plan
from medport_local.phantom import weights_dir
from medport_local.sources import DirectorySource, pull
from medport_local.store import Store

STEPS = [
    "environment", "profile", "packages", "store", "snapshots", "bundle", "wheels", "keys", "audit", "terraform",
    "clock",
]  # fmt: skip
FOR_DEVELOPERS = {"dev", "bench", "gemma270m"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one phantom, the place where commands look for one."""
    made = Store(tmp_path / "data" / "store")
    pull(made, DirectorySource(weights_dir("medsiglip")), told=lambda _: None)
    monkeypatch.setenv("MEDPORT_STORE", str(made.root))
    return made.root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without importing every package: that takes ten seconds."""
    monkeypatch.setattr(packages, "import_fault", lambda modules: None)


def _checks(run: Any) -> dict[str, Any]:
    return {check["name"]: check for check in run.json["profiles"][0]["checks"]}


def test_site_with_a_store_passes_and_says_what_it_does_not_have(medport: Any, store: Path) -> None:
    run = medport("doctor", "--offline", "--json")

    assert run.code == 0, run.out
    checks = _checks(run)
    assert list(checks) == STEPS
    assert run.json["profiles"][0]["profile"] == "offline"
    assert {name for name, check in checks.items() if check["status"] == "ok"} == {
        "environment", "profile", "packages", "store", "snapshots", "clock",
    }  # fmt: skip
    assert "local" in checks["packages"]["detail"]
    assert {check["status"] for check in checks.values()} == {"ok", "skipped"}


@pytest.mark.usefixtures("quick")
def test_first_fault_is_explained_with_its_remedy(medport: Any, tmp_path: Path) -> None:
    run = medport("doctor", "--offline", "--store", str(tmp_path / "none"))

    assert run.code == 1
    assert "FAILED   store" in run.out
    assert "skipped  snapshots          needs: store" in run.out
    assert "Begin with offline, store" in run.out
    assert "medport bundle install" in run.out


@pytest.mark.usefixtures("quick")
def test_machine_without_a_snapshot_is_not_well(
    medport: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDPORT_STORE", str(Store(tmp_path / "empty").root))

    run = medport("doctor", "--offline")

    assert run.code == 1
    assert "Begin with offline, snapshots" in run.out


@pytest.mark.usefixtures("quick", "store")
def test_signature_of_the_bundle_is_checked_by_the_given_key(medport: Any, tmp_path: Path) -> None:
    ours, others = tmp_path / "ours", tmp_path / "others"
    ours.mkdir()
    others.mkdir()
    keys = Keys.make(ours)
    items = [Item("documents/a.txt", "document", b"a")]
    write_bundle(tmp_path / "d.mpb", items, meta=META, signer=keys.signer)
    with Bundle.open(tmp_path / "d.mpb", keys.verifier) as bundle:
        site = install(plan(bundle, store_root=tmp_path / "s", to=tmp_path / "site")).directory
    asked = ("doctor", "--offline", "--json", "--bundle", str(site))

    ran = {
        "ours": medport(*asked, "--key", str(keys.public)),
        "others": medport(*asked, "--key", str(Keys.make(others).public)),
        "nobody": medport(*asked),
    }

    assert {name: run.code for name, run in ran.items()} == {"ours": 0, "others": 1, "nobody": 0}
    said = {name: _checks(run)["bundle"]["detail"] for name, run in ran.items()}
    assert "signed by key sha256:" in said["ours"]
    assert "is by another key" in said["others"]
    assert "signature NOT checked" in said["nobody"]


@pytest.mark.usefixtures("quick", "store")
def test_places_come_from_the_profile_and_the_environment_unless_given(
    medport: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("medport.toml").write_text('[profiles.here]\nbackend = "in-process"\nlock = "none.lock"\n')
    monkeypatch.setenv("MEDPORT_AUDIT_DIR", str(tmp_path / "log"))

    run = medport("doctor", "--offline", "--json", "--profile", "here")

    checks = _checks(run)
    assert "none.lock cannot be read" in checks["snapshots"]["detail"]
    assert f"there is no directory {tmp_path / 'log'}" in checks["audit"]["detail"]


@pytest.mark.parametrize(
    "option",
    [
        "--store", "--lock", "--bundle", "--audit", "--tls-cert", "--tls-key", "--keys", "--key", "--ca",
        "--signer",
    ],
)  # fmt: skip
def test_place_without_offline_is_wrong_usage(medport: Any, option: str) -> None:
    run = medport("doctor", option, "x", "--json")

    assert run.code == 64
    assert run.error["field"] == option[2:]
    assert run.error["remedy"] == "add --offline"


@pytest.mark.parametrize(
    "name", ["HTTPS_PROXY", "http_proxy", "ALL_PROXY", "HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
)
def test_variable_that_leads_outside_is_named_and_its_value_is_not(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_environment({name: "http://user:secret@10.0.0.1"})

    assert name in caught.value.message
    assert "secret" not in str(caught.value)
    assert caught.value.remedy == f"unset {name}"


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_variable_that_lets_the_hub_be_asked_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        check_environment({name: "0"})
    assert check_environment({name: "1", "HTTP_PROXY": ""}) == "no proxy, no hub"


@pytest.mark.usefixtures("store")
def test_profile_that_falls_back_to_the_cloud_is_refused(tmp_path: Path) -> None:
    Path("medport.toml").write_text(
        '[profiles.both]\nfallback = ["here", "cloud"]\n[profiles.here]\nbackend = "in-process"\n'
        '[profiles.cloud]\nbackend = "vertex"\nproject = "p"\nlocation = "europe-west4"\n'
        'medgemma = { endpoint = "1" }\n'
    )

    assert check_profile(config.resolve("here", {})) == "here (in-process)"
    with pytest.raises(PolicyError, match="profile cloud asks Vertex AI"):
        check_profile(config.resolve("both", {}))


def test_module_that_cannot_be_imported_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "whole_extras", lambda: ["local", "dicom"])
    monkeypatch.setattr(packages, "IMPORTS", {"local": ("json",), "dicom": ("json", "no_such_module")})

    with pytest.raises(
        ConfigError, match="the extra dicom cannot be imported: no_such_module ModuleNotFoundError"
    ):
        check_packages()


def test_module_that_takes_the_process_down_is_a_fault_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "falls.py").write_text("import os\nos._exit(139)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    assert packages.import_fault(["falls"]) == "exit code 139"
    assert packages.import_fault(["json"]) is None


def test_every_extra_for_sites_has_modules_to_import() -> None:
    file = Path(__file__).parents[3] / "pyproject.toml"
    extras = tomllib.loads(file.read_text())["project"]["optional-dependencies"]

    assert set(packages.IMPORTS) == set(extras) - FOR_DEVELOPERS


def test_extra_of_which_a_part_is_missing_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "dicom" in packages.whole_extras()

    monkeypatch.setattr(packages, "version", lambda name: None if name == "pydicom" else "1")

    assert "dicom" not in packages.whole_extras()
