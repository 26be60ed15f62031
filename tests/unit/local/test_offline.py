"""What a site with no network rests on: each part is checked, and a fault in it is named with a remedy."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from support.bundles import NOW, Certifier, Keys
from support.site_parts import build_wheel, provider_mirror, repack

from medport.errors import ConfigError, MedportError, NotFound, VerificationError
from medport_local.bundle import collect
from medport_local.bundle.archive import Bundle, Item, Meta, write_bundle
from medport_local.bundle.contents import Selection, gather
from medport_local.bundle.install import install, plan
from medport_local.bundle.signing import Signer, Verifier
from medport_local.offline import Absent, Premises
from medport_local.phantom import weights_dir
from medport_local.serving import keys
from medport_local.serving.audit import AuditLog
from medport_local.sources import DirectorySource, pull
from medport_local.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One phantom."""
    made = Store(tmp_path / "store")
    pull(made, DirectorySource(weights_dir("medsiglip")), told=lambda _: None)
    return made


@pytest.fixture
def installed(tmp_path: Path, store: Store) -> Premises:
    """A site that a bundle of the phantom, a wheel and a provider was installed at."""
    (tmp_path / "wheels").mkdir()
    build_wheel(tmp_path / "wheels", "demo")
    provider_mirror(tmp_path / "mirror")
    signing = Keys.make(tmp_path)
    selection = Selection(
        snapshots=[store.list()[0].reference], wheels=tmp_path / "wheels", providers=tmp_path / "mirror"
    )
    with gather(store, selection, created_at=NOW, medport_version="0.1.0") as contents:
        write_bundle(
            tmp_path / "x.mpb", contents.items, meta=Meta(created_at=NOW, medport="0.1.0"), signer=signing.signer
        )
    with Bundle.open(tmp_path / "x.mpb", signing.verifier) as bundle:
        done = install(plan(bundle, store_root=tmp_path / "far/store", to=tmp_path / "far/site", now=NOW), now=NOW)
    return Premises(store=done.store_root, bundle=done.directory, now=lambda: NOW)


def test_store_is_named_with_the_number_of_its_snapshots(store: Store) -> None:
    assert Premises(store=store.root).check_store() == f"{store.root}: 1 snapshot"


def test_store_that_is_not_there_is_an_error_that_names_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Premises(store=tmp_path / "none").check_store()

    assert "bundle install" in str(caught.value.remedy)


def test_every_snapshot_is_hashed_and_one_flipped_bit_is_found(store: Store) -> None:
    premises = Premises(store=store.root)
    assert "medport/medsiglip-phantom" in premises.check_snapshots()

    weights = store.list()[0].directory / "model.safetensors"
    weights.chmod(0o600)
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    weights.chmod(0o444)

    with pytest.raises(VerificationError, match="does not hold the bytes that its name says"):
        premises.check_snapshots()


def test_site_without_a_snapshot_is_at_fault(tmp_path: Path) -> None:
    empty = Store(tmp_path / "empty")

    with pytest.raises(NotFound, match="the store is empty") as caught:
        Premises(store=empty.root).check_snapshots()

    assert "bundle install" in str(caught.value.remedy)


def test_lock_of_a_snapshot_that_is_not_there_or_not_of_that_commit_is_refused(
    store: Store, tmp_path: Path
) -> None:
    from medport import lock as locks
    from medport_local.cli_lock import locked_model

    (stored,) = store.list()
    model = locked_model(store.open(stored), stored)
    content = {"version": 1, "models": {"medsiglip": model.model_dump(mode="json", exclude_unset=True)}}
    locks.write(tmp_path / "medport.lock", locks.checked(content))

    assert "as locked" in Premises(store=store.root, lock=tmp_path / "medport.lock").check_snapshots()
    content["models"]["medsiglip"]["revision"] = "f" * 40  # type: ignore[index]
    locks.write(tmp_path / "other.lock", locks.checked(content))
    with pytest.raises(VerificationError, match=r"the revision is .* is locked"):
        Premises(store=store.root, lock=tmp_path / "other.lock").check_snapshots()
    empty = Store(tmp_path / "empty")
    with pytest.raises(NotFound, match="which the lock names"):
        Premises(store=empty.root, lock=tmp_path / "medport.lock").check_snapshots()


def test_installed_bundle_is_as_its_manifest_lists_until_a_file_is_changed(installed: Premises) -> None:
    assert "files as listed, made 2026-11-26" in installed.check_bundle()
    assert installed.bundle is not None

    wheel = installed.bundle / "wheels/demo-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes() + b"\0")

    with pytest.raises(VerificationError, match=r"wheels/demo-1\.0.* is not what the manifest lists"):
        installed.check_bundle()


def test_manifest_that_was_exchanged_after_installing_is_found(installed: Premises) -> None:
    assert installed.bundle is not None
    manifest = installed.bundle / "signed/manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"0.1.0"', b'"0.2.0"'))

    with pytest.raises(VerificationError, match="is not the one that was installed"):
        installed.check_bundle()


def _rewrite(site: Path, **receipt: object) -> None:
    """Put a changed document, a manifest that lists it and a receipt of that manifest into an installation."""
    (site / "wheels/demo-1.0-py3-none-any.whl").write_bytes(b"evil")
    manifest = json.loads((site / "signed/manifest.json").read_bytes())
    (entry,) = [each for each in manifest["entries"] if each["kind"] == "wheel"]
    entry.update(sha256=hashlib.sha256(b"evil").hexdigest(), size_bytes=4)
    data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    (site / "signed/manifest.json").write_bytes(data)
    _change_receipt(site, manifest_sha256=hashlib.sha256(data).hexdigest(), **receipt)


def _change_receipt(site: Path, **changes: object) -> None:
    receipt = json.loads((site / "receipt.json").read_bytes())
    (site / "receipt.json").write_text(json.dumps({**receipt, **changes}))


def test_site_whose_manifest_and_receipt_were_rewritten_is_refused_where_the_signer_is_known(
    installed: Premises, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert installed.bundle is not None
    trusting = replace(installed, key=tmp_path / "pub.pem")
    assert "signed by key sha256:" in trusting.check_bundle()

    _rewrite(installed.bundle)

    with pytest.raises(VerificationError, match=r"manifest\.sig"):
        trusting.check_bundle()
    monkeypatch.setenv("MEDPORT_BUNDLE_KEY", str(tmp_path / "pub.pem"))
    with pytest.raises(VerificationError, match=r"manifest\.sig"):
        installed.check_bundle()


def test_signature_that_nobody_could_check_is_said_so(installed: Premises) -> None:
    said = installed.check_bundle()

    assert "signature NOT checked" in said
    assert "MEDPORT_BUNDLE_KEY" in said
    with pytest.raises(ConfigError) as caught:
        replace(installed, signer="CN=Release").check_bundle()
    assert caught.value.field == "signer"


def test_bundle_that_another_than_the_trusted_key_signed_is_refused(installed: Premises, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Keys.make(tmp_path / "other")

    with pytest.raises(VerificationError, match="is by another key"):
        replace(installed, key=other.public).check_bundle()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"signed_by": ["CN=Vendor"]}, "signer"),
        ({"created_at": "2020-01-01T00:00:00Z"}, "date"),
        ({"lock_id": "a" * 64}, "lock"),
        ({"key_sha256": "a" * 64}, "key"),
    ],
)
def test_receipt_that_tells_another_story_than_what_was_signed_is_refused(
    installed: Premises, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    assert installed.bundle is not None
    _change_receipt(installed.bundle, **changes)

    with pytest.raises(VerificationError, match=f"receipt.json does not have the {said}"):
        replace(installed, key=tmp_path / "pub.pem").check_bundle()


def test_authority_that_certified_the_signer_is_trusted_as_long_as_the_certificate_is_valid(
    tmp_path: Path,
) -> None:
    authority = Certifier(tmp_path)
    key, chain = authority.certify("Release")
    signer = Signer(key, certificate=chain, clock=lambda: NOW)
    verifier = Verifier(authorities=[authority.file], clock=lambda: NOW)
    items = [Item("documents/a.txt", "document", b"a")]
    write_bundle(tmp_path / "d.mpb", items, meta=Meta(created_at=NOW, medport="0"), signer=signer)
    with Bundle.open(tmp_path / "d.mpb", verifier) as bundle:
        done = install(plan(bundle, store_root=tmp_path / "s/store", to=tmp_path / "s/site", now=NOW), now=NOW)
    premises = Premises(store=done.store_root, bundle=done.directory, ca=(authority.file,), now=lambda: NOW)

    assert "signed by CN=Release" in premises.check_bundle()
    assert "signed by CN=Release" in replace(premises, signer="CN=Release").check_bundle()
    for changes, said in (
        ({"signer": "CN=Vendor"}, "is not the expected signer"),
        ({"now": lambda: NOW + timedelta(days=3650)}, "expired|not valid"),
    ):
        with pytest.raises(VerificationError, match=said):
            replace(premises, **changes).check_bundle()  # type: ignore[arg-type]


def test_wheel_that_somebody_put_beside_those_of_the_bundle_is_found(installed: Premises, tmp_path: Path) -> None:
    assert installed.bundle is not None
    build_wheel(installed.bundle / "wheels", "demo", "9.0")

    with pytest.raises(VerificationError, match=r"wheels/demo-9\.0.* is not in the manifest"):
        installed.check_bundle()

    (installed.bundle / "wheels/demo-9.0-py3-none-any.whl").unlink()
    (installed.bundle / "wheels/more").symlink_to(tmp_path)
    with pytest.raises(VerificationError, match="wheels/more is not in the manifest"):
        installed.check_bundle()


def test_medport_that_was_not_installed_from_the_bundle_is_said_so(installed: Premises) -> None:
    with pytest.raises(VerificationError, match="medport itself is not installed from the bundle") as caught:
        installed.check_wheels()

    assert "--no-index" in str(caught.value.remedy)


def test_file_that_runs_and_is_of_no_distribution_is_named(
    installed: Premises, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert installed.bundle is not None
    wheels = installed.bundle / "wheels"
    for wheel in (*wheels.iterdir(), build_wheel(wheels, "medport"), build_wheel(tmp_path, "beside")):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(tmp_path / "here")
    monkeypatch.setattr(collect, "installed_here", partial(collect.installed_here, [str(tmp_path / "here")]))
    assert installed.check_wheels() == (
        "the files of 2 distributions are those of the bundle; of no wheel of it: 1"
    )

    (tmp_path / "here" / "evil.pth").write_text("import os\n")

    with pytest.raises(VerificationError, match=r"evil\.pth can run, and is of no distribution"):
        installed.check_wheels()


def test_medport_of_another_build_than_the_bundles_is_named(installed: Premises) -> None:
    assert installed.bundle is not None
    repack(
        "medport", installed.bundle / "wheels"
    )  # what is installed here is editable: no file of it is the wheel's

    with pytest.raises(VerificationError, match=r"medport: .* is missing, or is not installed from a wheel"):
        installed.check_wheels()


def test_provider_mirror_is_listed_where_terraform_is(
    installed: Premises, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "terraform"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))

    assert installed.check_providers() == f"{program}, registry.example/hashicorp/google 7.42.0"

    program.unlink()
    with pytest.raises(Absent, match="terraform is not there"):
        installed.check_providers()


@pytest.mark.parametrize("check", ["check_files", "check_audit"])
def test_what_was_not_named_is_absent_and_no_fault(store: Store, check: str) -> None:
    with pytest.raises(Absent):
        getattr(Premises(store=store.root), check)()


def test_bundle_that_is_at_no_place_is_absent_and_a_named_one_is_an_error(store: Store, tmp_path: Path) -> None:
    for check in ("check_bundle", "check_wheels", "check_providers"):
        with pytest.raises(Absent):
            getattr(Premises(store=store.root), check)()
    with pytest.raises(ConfigError, match="there is no directory"):
        Premises(store=store.root, bundle=tmp_path / "none").check_bundle()


def _certified(tmp_path: Path, **validity: datetime) -> Premises:
    valid = (validity.get("begin", NOW - timedelta(days=1)), validity.get("end", NOW + timedelta(days=300)))
    key, chain = Certifier(tmp_path).certify("server", valid=valid)
    key.chmod(0o600)
    return Premises(tls_cert=chain, tls_key=key, now=lambda: NOW)


def test_certificate_and_key_that_are_in_force_are_said_with_their_end(tmp_path: Path) -> None:
    said = _certified(tmp_path).check_files()

    assert "server-chain.pem valid until 2027-09-22" in said
    assert "server-key.pem belongs to its certificate" in said


def _expired(tmp_path: Path) -> Premises:
    return _certified(tmp_path, end=NOW)


def _early(tmp_path: Path) -> Premises:
    return _certified(tmp_path, begin=NOW + timedelta(seconds=1))


def _readable(tmp_path: Path) -> Premises:
    made = _certified(tmp_path)
    assert made.tls_key is not None
    made.tls_key.chmod(0o644)
    return made


def _another(tmp_path: Path) -> Premises:
    made = _certified(tmp_path)
    key, _ = Certifier(tmp_path, name="Other").certify("other")
    key.chmod(0o600)
    return Premises(tls_cert=made.tls_cert, tls_key=key, now=made.now)


def _no_certificate(tmp_path: Path) -> Premises:
    (tmp_path / "x.pem").write_text("no certificate")
    return Premises(tls_cert=tmp_path / "x.pem", now=lambda: NOW)


def _no_file(tmp_path: Path) -> Premises:
    return Premises(ca_file=tmp_path / "none.pem", now=lambda: NOW)


def _no_key_in_force(tmp_path: Path) -> Premises:
    keys.add(tmp_path / "keys.json", "ward", expires=(NOW - timedelta(days=1)).date())
    return Premises(keys=tmp_path / "keys.json", now=lambda: NOW)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_expired, "server-chain.pem expired on 2026-11-26"),
        (_early, "server-chain.pem is not valid before"),
        (_readable, "server-key.pem can be read by others"),
        (_another, "other-key.pem is not the key of server-chain.pem"),
        (_no_certificate, "holds no certificate"),
        (_no_file, "cannot be read"),
        (_no_key_in_force, "holds no key in force"),
    ],
)
def test_key_or_certificate_that_does_not_serve_is_named(
    tmp_path: Path, make: Callable[[Path], Premises], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        make(tmp_path).check_files()

    assert caught.value.remedy


def test_api_keys_in_force_are_counted(tmp_path: Path) -> None:
    keys.add(tmp_path / "keys.json", "ward", expires=(NOW - timedelta(days=1)).date())
    keys.add(tmp_path / "keys.json", "lab")

    assert Premises(keys=tmp_path / "keys.json", now=lambda: NOW).check_files() == "1 of 2 API keys in force"


def _log(directory: Path, at: datetime = NOW) -> Path:
    log = AuditLog(directory, clock=at.timestamp)
    for number in range(3):
        log.append({"event": "answered", "request_id": f"r{number}"})
    log.close()
    return directory


def test_audit_log_is_unbroken_until_a_line_is_changed(tmp_path: Path) -> None:
    premises = Premises(audit=_log(tmp_path / "audit"))
    assert premises.check_audit() == "unbroken, 3 lines"

    (file,) = (tmp_path / "audit").glob("*.jsonl")
    file.write_bytes(file.read_bytes().replace(b'"r1"', b'"rX"'))

    with pytest.raises(VerificationError, match="line 2: the line was changed"):
        premises.check_audit()


def test_audit_log_whose_files_were_all_taken_away_is_found(tmp_path: Path) -> None:
    for file in _log(tmp_path / "audit").glob("*.jsonl"):
        file.unlink()

    with pytest.raises(VerificationError):
        Premises(audit=tmp_path / "audit").check_audit()


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may write everywhere")
def test_audit_log_that_may_not_be_written_is_an_error(tmp_path: Path) -> None:
    _log(tmp_path / "audit").chmod(0o500)

    with pytest.raises(ConfigError, match="may not be written"):
        Premises(audit=tmp_path / "audit").check_audit()


def test_audit_log_that_is_not_there_is_an_error_and_an_empty_one_is_absent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no directory"):
        Premises(audit=tmp_path / "none").check_audit()
    (tmp_path / "audit").mkdir()
    with pytest.raises(Absent, match="no lines yet"):
        Premises(audit=tmp_path / "audit").check_audit()


def test_clock_that_is_behind_the_newest_record_is_found(
    store: Store, tmp_path: Path, installed: Premises
) -> None:
    far = datetime.now(UTC) + timedelta(days=400)
    log = _log(tmp_path / "audit", at=far)
    before = [
        Premises(store=store.root, now=lambda: datetime.now(UTC) - timedelta(days=1)),
        Premises(store=tmp_path / "none", audit=log),
        Premises(store=tmp_path / "none", bundle=installed.bundle, now=lambda: NOW - timedelta(hours=1)),
    ]

    for premises in before:
        with pytest.raises(ConfigError, match="and the newest record is of"):
            premises.check_clock()
    after = Premises(store=store.root, audit=log, bundle=installed.bundle, now=lambda: far)
    assert "the newest record is of" in after.check_clock()


def test_nothing_opens_a_socket_or_looks_up_a_name(installed: Premises, tmp_path: Path) -> None:
    seen: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, _: seen.append(event) if watching[0] and event.startswith("socket.") else None)
    premises = replace(installed, key=tmp_path / "pub.pem", audit=_log(tmp_path / "audit"))

    for check in [name for name in dir(premises) if name.startswith("check_")]:
        try:
            getattr(premises, check)()
        except (MedportError, Absent):
            continue
    watching[0] = False

    assert seen == []


def test_bundle_without_wheels_leaves_nothing_to_compare(tmp_path: Path) -> None:
    signing = Keys.make(tmp_path)
    write_bundle(
        tmp_path / "d.mpb",
        [Item("documents/a.txt", "document", b"a")],
        meta=Meta(created_at=NOW, medport="0"),
        signer=signing.signer,
    )
    with Bundle.open(tmp_path / "d.mpb", signing.verifier) as bundle:
        done = install(plan(bundle, store_root=tmp_path / "s/store", to=tmp_path / "s/site", now=NOW), now=NOW)

    with pytest.raises(Absent, match="the bundle has no wheels"):
        Premises(store=done.store_root, bundle=done.directory).check_wheels()
