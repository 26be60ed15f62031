"""What a specification means, against a real registry, a real hub and files on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.hub_server import Hub as HubServer
from support.hub_server import hub_server
from support.registry_server import RegistryServer, registry_server
from support.snapshots import write_snapshot

from medport import lock as locks
from medport.errors import ConfigError, PolicyError, VerificationError
from medport.lock import Lock
from medport_deploy.lock import resolving as deploy_locks
from medport_deploy.lock import terms
from medport_deploy.lock.hub import Hub
from medport_deploy.lock.mirror import Mirror
from medport_deploy.lock.resolving import changes, deploy_pins, require_pinned, resolve
from medport_deploy.spec import reading as specs
from medport_deploy.spec.reading import Spec
from medport_local.phantom import weights_dir

NOW = datetime(2026, 11, 26, tzinfo=UTC)
MODEL = "google/medgemma-4b-it"
DIGEST = "sha256:" + "d" * 64
PHANTOM = "medport/medgemma-phantom"


class Site:
    """A registry with an image, a hub with a model, and a specification of both."""

    def __init__(self, registry: RegistryServer, hub: HubServer, files: dict[str, bytes]) -> None:
        self.registry, self.hub, self.files = registry, hub, files
        self.digest = registry.push("team/serving", "1.0")
        self.commit = hub.add(MODEL, files)

    @property
    def models(self) -> Hub:
        return Hub(endpoint=self.hub.endpoint, sleep=lambda _: None)

    def spec(self, *, extra: str = "", **changed: str) -> Spec:
        model = {"model": MODEL, "image": f"{self.registry.host}/team/serving:1.0"} | changed
        lines = "".join(f"    {key}: {value}\n" for key, value in model.items())
        return specs.parse(
            "version: 1\nname: radiology\n"
            "target: {kind: vertex, project: example-project, location: us-east4}\n"
            f"models:\n  chat:\n{lines}"
            "    machine: {type: g2-standard-24, accelerator: NVIDIA_L4, count: 2}\n"
            f"    endpoint: {{id: 77}}\naccept_terms: [hai-def]\n{extra}".encode()
        )

    def lock(self, spec: Spec | None = None, **options: Any) -> Lock:
        options = {"models": self.models, "accepted_by": "jo", "now": NOW} | options
        return resolve(spec or self.spec(), **options)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = write_snapshot(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with registry_server() as registry, hub_server() as hub:
        yield Site(registry, hub, files)


def altered(lock: Lock, **deploy: Any) -> Lock:
    content = lock.model_dump(mode="json", exclude_unset=True)
    return locks.checked({**content, "deploy": {**content["deploy"], **deploy}})


def without(lock: Lock, *path: str) -> Lock:
    content = lock.model_dump(mode="json", exclude_unset=True)
    place = content
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return locks.checked(content)


def test_tag_and_branch_become_digest_and_commit(site: Site) -> None:
    lock = site.lock()

    model, image = lock.models["chat"], lock.images["chat"]
    assert (model.model_id, model.revision, set(model.files)) == (MODEL, site.commit, set(site.files))
    assert (image.uri, image.digest) == (f"{site.registry.host}/team/serving", site.digest)
    assert model.terms is not None
    assert (model.terms.accepted_by, model.terms.accepted_at) == ("jo", "2026-11-26T00:00:00+00:00")
    assert deploy_pins(lock).sdk["medport"]
    require_pinned(lock, site.spec())


def test_resolving_again_gives_the_same_lock_id_and_no_changes(site: Site, tmp_path: Path) -> None:
    first = site.lock()
    locks.write(tmp_path / "medport.lock", first)

    again = site.lock(previous=locks.read(tmp_path / "medport.lock"), accepted_by="al")

    assert again.lock_id == first.lock_id
    assert changes(first, again) == []


def test_a_moved_tag_and_a_moved_branch_show_in_the_changes(site: Site) -> None:
    before = site.lock()
    digest = site.registry.push("team/serving", "1.0", layers=(1,))
    commit = site.hub.add(MODEL, {**site.files, "tokenizer.json": b"{}"})

    said = changes(before, site.lock(previous=before))

    assert said == [
        f"model chat: {MODEL}@{site.commit} -> {MODEL}@{commit}",
        f"image chat: {site.registry.host}/team/serving@{site.digest} -> "
        f"{site.registry.host}/team/serving@{digest}",
    ]
    assert changes(None, before)[0] == f"model chat: nothing -> {MODEL}@{site.commit}"


def test_keys_of_other_tools_are_kept(site: Site) -> None:
    previous = locks.checked({"version": 1, "site": {"ticket": 7}})

    assert (site.lock(previous=previous).model_extra or {})["site"] == {"ticket": 7}


def test_terms_are_needed_and_asked_for_again_when_they_change(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = site.lock()

    with pytest.raises(PolicyError, match="nobody accepts"):
        site.lock(accepted_by="")
    monkeypatch.setattr(terms, "HAI_DEF", replace(terms.HAI_DEF, version="2027-01"))
    with pytest.raises(PolicyError, match="no longer those that jo accepted"):
        site.lock(previous=before)
    assert deploy_pins(site.lock(previous=before, again=["hai-def"])).terms["hai-def"].accepted_by == "jo"


def test_offline_nobody_is_asked(site: Site) -> None:
    before = site.lock()
    site.registry.requests.clear()
    site.hub.requests.clear()

    again = resolve(site.spec(), previous=before, offline=True, now=NOW)

    assert again.lock_id == before.lock_id
    assert (site.registry.requests, site.hub.requests) == ([], [])


def test_offline_what_is_not_known_is_refused_with_what_to_give(site: Site) -> None:
    with pytest.raises(ConfigError, match=r"which digest .*@sha256:"):
        resolve(site.spec(), offline=True, accepted_by="jo")
    with pytest.raises(ConfigError, match=f"what {MODEL}@main is .*--mirror"):
        resolve(site.spec(image=f"registry.example.org/a@{DIGEST}"), offline=True, accepted_by="jo")
    with pytest.raises(ConfigError, match="the hub is not asked"):
        site.lock(offline=True)


def test_offline_a_mirror_and_a_digest_are_enough() -> None:
    spec = specs.parse(
        f"version: 1\nname: demo\ntarget: {{kind: local, project: demo, location: here, url: 'http://127.0.0.1:1'}}\n"
        f"models:\n  chat:\n    model: {PHANTOM}\n    image: registry.example.org/serving@{DIGEST}\n"
        "    machine: {type: n1-standard-4}\n".encode()
    )

    lock = resolve(spec, models=Mirror(weights_dir("medgemma").parent), offline=True)

    assert (lock.models["chat"].family, lock.images["chat"].digest) == ("medgemma", DIGEST)
    require_pinned(lock, spec)
    assert resolve(spec, models=Mirror(weights_dir("medgemma"))).lock_id == lock.lock_id


def test_the_lock_is_one_that_the_local_server_takes(site: Site, tmp_path: Path) -> None:
    lock = site.lock()

    locks.write(tmp_path / "medport.lock", lock)

    assert locks.read(tmp_path / "medport.lock").lock_id == lock.lock_id


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("images", "chat"), "has no digest in the lock: a tag moves"),
        (("models", "chat", "revision"), "is locked without a commit"),
        (("models", "chat"), "is not in the lock"),
        (("deploy", "terms"), "its terms are not accepted"),
    ],
)
def test_a_lock_that_leaves_something_open_is_refused(site: Site, path: tuple[str, ...], said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        require_pinned(without(site.lock(), *path), site.spec())


def test_a_branch_in_the_place_of_a_commit_is_refused_where_the_file_is_read(site: Site) -> None:
    content = json.loads(site.lock().text())
    content["models"]["chat"]["revision"] = "main"

    with pytest.raises(ConfigError, match="not a commit; a branch or a tag moves"):
        locks.parse(json.dumps(content))


def test_a_pickle_in_a_lock_is_refused(site: Site) -> None:
    from medport_deploy.lock.model_source import locked

    lock = site.lock()
    model = lock.models["chat"]
    file = next(iter(model.files.values()))
    bad = locked(model.model_id, model.revision, "medgemma", {**model.files, "pytorch_model.bin": file})
    content = lock.model_dump(mode="json", exclude_unset=True)
    content["models"]["chat"] = {**content["models"]["chat"], **bad.model_dump(mode="json", exclude_unset=True)}

    with pytest.raises(VerificationError, match="could run code"):
        require_pinned(locks.checked(content), site.spec())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"args": "[--max-num-seqs=2]"}, "was made of another specification"),
        ({"model": "google/medgemma-27b-it"}, f"and {MODEL} is locked"),
        ({"revision": "f" * 40}, f"is of {'f' * 40}, and"),
        ({"image": f"registry.example.org/serving@{DIGEST}"}, "is locked"),
    ],
)
def test_a_lock_of_another_specification_is_refused(site: Site, change: dict[str, str], said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        require_pinned(site.lock(), site.spec(**change))


def test_another_digest_of_the_same_repository_is_refused(site: Site) -> None:
    with pytest.raises(VerificationError, match=rf"is .*@{DIGEST}, and .*@{site.digest} is locked"):
        require_pinned(site.lock(), site.spec(image=f"{site.registry.host}/team/serving@{DIGEST}"))


def test_a_lock_that_names_more_than_the_specification_is_refused(site: Site) -> None:
    content = site.lock().model_dump(mode="json", exclude_unset=True)
    content["models"]["more"] = content["models"]["chat"]

    with pytest.raises(VerificationError, match="locks more, which the specification does not name"):
        require_pinned(locks.checked(content), site.spec())


def test_a_lock_of_another_tool_or_form_is_refused(site: Site) -> None:
    lock = site.lock()

    with pytest.raises(ConfigError, match="was not made for deploying"):
        require_pinned(without(lock, "deploy"), site.spec())
    with pytest.raises(ConfigError, match=r"something else under deploy\.spec_sha256"):
        require_pinned(altered(lock, spec_sha256="x"), site.spec())


PROVIDERS = """
provider "registry.example.org/hashicorp/google" {
  version     = "8.7.0"
  constraints = ">= 7.42.0, < 9.0.0"
  hashes = [
    "h1:not-a-real-hash",
  ]
}
"""


@pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")
def test_terraform_and_its_provider_lock_are_pinned_and_held_to(site: Site, tmp_path: Path) -> None:
    root = tmp_path / "infra"
    root.mkdir()
    spec = site.spec(extra="terraform: {root: infra}\n")

    bare = site.lock(spec, directory=tmp_path)
    with pytest.raises(VerificationError, match=r"has no \.terraform\.lock\.hcl"):
        require_pinned(bare, spec, directory=tmp_path)
    (root / ".terraform.lock.hcl").write_text(PROVIDERS)
    lock = site.lock(spec, directory=tmp_path)
    pins = require_pinned(lock, spec, directory=tmp_path).terraform
    (root / ".terraform.lock.hcl").write_text(PROVIDERS.replace("8.7.0", "8.7.1"))

    assert pins is not None
    assert (pins.provider, pins.version.split(".")[0]) == ("8.7.0", "1")
    with pytest.raises(VerificationError, match="is not the locked one"):
        require_pinned(lock, spec, directory=tmp_path)


def test_a_terraform_root_that_is_not_there_is_named(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no directory infra"):
        site.lock(site.spec(extra="terraform: {root: infra}\n"), directory=tmp_path)


def test_one_image_of_two_models_is_asked_for_once(site: Site) -> None:
    spec = site.spec()
    two = spec.model_copy(update={"models": {"a": spec.models["chat"], "b": spec.models["chat"]}})

    lock = site.lock(two)

    assert lock.images["a"].digest == lock.images["b"].digest == site.digest
    assert len(site.registry.requests) == 1
    assert deploy_locks.accepted_before(None) == {}
