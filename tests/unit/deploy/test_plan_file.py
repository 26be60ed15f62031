"""A saved plan is done as it was approved, or not at all."""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.deploy_plans import MODEL, deployed, lock, spec, spec_bytes

from medport.errors import ConfigError, NotFound, PreconditionFailed
from medport.lock import Lock
from medport_deploy.plan import file as plan_file
from medport_deploy.plan import making as plans
from medport_deploy.plan.making import Plan
from medport_deploy.plan.reality import EndpointState, ModelState, Reality
from medport_deploy.terraform.root import Terraform

EMPTY = Reality({MODEL: ModelState()})
ROOT = """
variable "token" {
  type      = string
  sensitive = true
}
resource "terraform_data" "plain" { input = "seen" }
resource "terraform_data" "secret" { input = var.token }
"""
needs_terraform = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")


class Nothing:
    """A control plane at which nothing stands."""

    def get_endpoint(self, endpoint: str, /) -> dict[str, Any]:
        raise NotFound(endpoint)

    def list_endpoints(self, labels: Mapping[str, str], /) -> list[dict[str, Any]]:
        return []

    def list_versions(self, model: str, /) -> list[dict[str, Any]]:
        raise NotFound(model)


@pytest.fixture
def made() -> Plan:
    return plans.make(spec(), lock(spec()), Nothing(), spec_bytes=spec_bytes())


def load(
    path: Path,
    *,
    data: bytes | None = None,
    locked: Lock | None = None,
    found: Reality | None = EMPTY,
    medport: str | None = None,
) -> plan_file.Saved:
    made_by = json.loads(path.read_bytes()).get("medport")
    return plan_file.load(
        path,
        spec_bytes=data or spec_bytes(),
        lock=locked or lock(spec()),
        found=found,
        medport=medport or made_by,
    )


def test_plan_comes_back_as_it_was_saved(made: Plan, tmp_path: Path) -> None:
    saved = plan_file.save(tmp_path / "plan.json", made)

    found = load(tmp_path / "plan.json")

    assert found == saved
    assert found.plan == made
    assert found.plan.as_dict() == made.as_dict()


def test_plan_is_readable_by_its_owner_alone(made: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("an earlier one")
    (tmp_path / "plan.json").chmod(0o644)

    plan_file.save(tmp_path / "plan.json", made)

    assert stat.S_IMODE((tmp_path / "plan.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_plan_is_refused_when_the_specification_has_moved(made: Plan, tmp_path: Path) -> None:
    plan_file.save(tmp_path / "plan.json", made)

    with pytest.raises(PreconditionFailed, match="the specification changed") as refused:
        load(tmp_path / "plan.json", data=spec_bytes() + b"# a word\n")

    assert refused.value.remedy == "plan again: medport deploy plan"


def test_plan_is_refused_when_the_lock_has_moved(made: Plan, tmp_path: Path) -> None:
    plan_file.save(tmp_path / "plan.json", made)
    other = lock(spec(), said="again")

    with pytest.raises(PreconditionFailed, match="the lock") as refused:
        load(tmp_path / "plan.json", locked=other)

    assert other.lock_id[:12] in str(refused.value)
    assert "specification" not in str(refused.value)


def test_plan_is_refused_when_what_stands_has_moved(made: Plan, tmp_path: Path) -> None:
    plan_file.save(tmp_path / "plan.json", made)

    with pytest.raises(PreconditionFailed, match="what stands for reader changed"):
        load(tmp_path / "plan.json", found=deployed(spec(), lock(spec())))


def test_plan_is_refused_when_only_an_etag_has_moved(tmp_path: Path) -> None:
    before = deployed(spec(), lock(spec()))
    endpoint = before.models[MODEL].endpoint
    assert endpoint is not None
    after = Reality({MODEL: replace(before.models[MODEL], endpoint=replace(endpoint, etag="e2"))})
    inputs = plans.inputs_of(spec_bytes(), lock(spec()), before, None)
    made = plans.make(spec(), lock(spec()), Nothing(), spec_bytes=spec_bytes())
    plan_file.save(tmp_path / "plan.json", replace(made, inputs=inputs))

    load(tmp_path / "plan.json", found=before)

    with pytest.raises(PreconditionFailed, match="what stands for reader changed"):
        load(tmp_path / "plan.json", found=after)


def test_plan_is_refused_when_something_came_to_be_left_over(made: Plan, tmp_path: Path) -> None:
    plan_file.save(tmp_path / "plan.json", made)

    with pytest.raises(PreconditionFailed, match="what is left of earlier specifications changed"):
        load(tmp_path / "plan.json", found=replace(EMPTY, leftovers=(EndpointState("old"),)))


def test_run_that_goes_on_is_not_held_up_by_what_it_has_done_itself(made: Plan, tmp_path: Path) -> None:
    plan_file.save(tmp_path / "plan.json", made)

    assert load(tmp_path / "plan.json", found=None).plan == made
    with pytest.raises(PreconditionFailed, match="the specification"):
        load(tmp_path / "plan.json", found=None, data=spec_bytes() + b"#")


def test_plan_of_another_medport_is_refused_with_both_versions(made: Plan, tmp_path: Path) -> None:
    plan_file.save(tmp_path / "plan.json", made)

    with pytest.raises(PreconditionFailed, match=rf"medport {made.medport}, and this is 99\.0"):
        load(tmp_path / "plan.json", medport="99.0")


def test_plan_that_was_changed_by_hand_is_refused(made: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan_file.save(path, made)
    whole = json.loads(path.read_bytes())
    whole["plan"]["rows"][0]["action"] = "none"
    path.write_text(json.dumps(whole))

    with pytest.raises(PreconditionFailed, match="was changed after it was made"):
        load(path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"form": "other"}', b'{"form": "medport-plan"', b"\xff\xfe"])
def test_file_that_is_no_plan_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(data)

    with pytest.raises(ConfigError, match="is no plan of medport"):
        plan_file.read(tmp_path / "plan.json", medport="1")


def test_plan_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        plan_file.read(tmp_path / "plan.json", medport="1")


def test_plan_that_cannot_be_written_leaves_nothing(made: Plan, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        plan_file.save(tmp_path / "none" / "plan.json", made)

    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def terraform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terraform:
    (tmp_path / "empty.tfrc").touch()
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(tmp_path / "empty.tfrc"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "main.tf").write_text(ROOT)
    found = Terraform(tmp_path / "root", variables={"token": "hunter2"})
    found.init()
    return found


def with_terraform(terraform: Terraform, path: Path) -> plan_file.Saved:
    made = plans.make(
        spec(),
        lock(spec()),
        Nothing(),
        spec_bytes=spec_bytes(),
        terraform=terraform,
        terraform_file=plan_file.terraform_file(path),
    )
    return plan_file.save(path, made)


@needs_terraform
def test_terraforms_plan_is_part_of_ours_and_its_secrets_are_not(terraform: Terraform, tmp_path: Path) -> None:
    saved = with_terraform(terraform, tmp_path / "plan.json")

    rows = {row.address: row for row in saved.plan.rows if row.address.startswith("terraform:")}
    assert {row.action for row in rows.values()} == {"create"}
    assert rows["terraform:terraform_data.plain"].after["input"] == "seen"
    assert rows["terraform:terraform_data.secret"].after["input"] == "(sensitive)"
    assert b"hunter2" not in (tmp_path / "plan.json").read_bytes()
    assert saved.plan.rows[0].address.startswith("terraform:")


@needs_terraform
def test_plan_is_refused_with_another_plan_of_terraforms_beside_it(terraform: Terraform, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    saved = with_terraform(terraform, path)
    assert load(path).terraform_file == saved.terraform_file == tmp_path / "plan.json.tfplan"
    terraform.plan(plan_file.terraform_file(path), destroy=True)

    with pytest.raises(PreconditionFailed, match=r"plan\.json\.tfplan is another one"):
        load(path)


@needs_terraform
def test_plan_whose_terraform_plan_was_applied_is_good_only_to_go_on(terraform: Terraform, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with_terraform(terraform, path)
    plan_file.terraform_file(path).unlink()

    with pytest.raises(PreconditionFailed, match="Terraform's plan is gone"):
        load(path)

    assert load(path, found=None).terraform_file is None


@needs_terraform
def test_applied_terraform_is_no_change_in_the_next_plan(terraform: Terraform, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    terraform.apply(terraform.plan(tmp_path / "first.tfplan"))

    saved = with_terraform(terraform, path)

    assert not any(row.address.startswith("terraform:") for row in saved.plan.rows)


@needs_terraform
def test_plan_that_cannot_look_at_the_target_stops_terraform(terraform: Terraform, tmp_path: Path) -> None:
    class Broken(Nothing):
        def list_endpoints(self, labels: Mapping[str, str], /) -> list[dict[str, Any]]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plans.make(
            spec(),
            lock(spec()),
            Broken(),
            spec_bytes=spec_bytes(),
            terraform=terraform,
            terraform_file=tmp_path / "t.tfplan",
        )

    assert terraform.cancel.is_set()
