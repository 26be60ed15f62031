"""Terraform's part of a run against the real terraform, and what its roots are given."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import deploy_plans, deploying
from support.configurations import SOURCE

from medport.errors import ConfigError, Conflict, PreconditionFailed
from medport_deploy.control.plane import ControlPlane
from medport_deploy.plan import capacity, cost, diff, estimates, terraform_changes
from medport_deploy.plan.making import Inputs, Plan
from medport_deploy.plan.reality import Reality
from medport_deploy.plan.rows import Row
from medport_deploy.run import apply, journal, terraform_step, todo
from medport_deploy.run.interrupts import Interrupts, Stopped
from medport_deploy.run.steps import Step
from medport_deploy.terraform.errors import TerraformError
from medport_deploy.terraform.root import Terraform
from medport_deploy.terraform.variables import root_variables

needs_terraform = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")
TWO = """
resource "terraform_data" "first" { input = "1" }
resource "terraform_data" "second" {
  input = "2"
  lifecycle {
    precondition {
      # Not known before the first is made, so terraform looks only then.
      condition     = terraform_data.first.id == "" || fileexists("${path.module}/ready")
      error_message = "not ready"
    }
  }
}
"""
SLOW = """
resource "terraform_data" "slow" {
  provisioner "local-exec" { command = "touch begun; sleep 2" }
}
resource "terraform_data" "never" { depends_on = [terraform_data.slow] }
"""
THIRD = 'resource "terraform_data" "third" { input = "3" }\n'


class Rooted:
    """A root, its saved plan, and the run that applies it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "root"
        self.directory.mkdir()
        self.file = directory / "plan.json.tfplan"
        self.journals = directory / "journals"
        self.rows: tuple[Row, ...] = ()
        # A control plane that is never asked.
        self.control = ControlPlane(deploying.Target("http://127.0.0.1:9"), None, polling=deploying.FAST)

    def terraform(self) -> Terraform:
        return Terraform(self.directory)

    def planned(self, text: str) -> None:
        """Approve what the configuration says."""
        (self.directory / "main.tf").write_text(text)
        terraform = self.terraform()
        terraform.init()
        outcome = terraform.plan(self.file)
        self.rows = terraform_changes.rows(terraform.show(outcome), estimates.of("local"))

    def step(self) -> Step:
        return terraform_step.applied(self.terraform(), self.file, self.rows, deploy_plans.spec())

    def run(self, **more: Any) -> apply.Report:
        header = deploying.header("apply", "chest")
        return apply.run([self.step()], header, self.journals, control=self.control, **more)

    def killed(self) -> None:
        """Leave the journal of a run that died after the step had begun."""
        journal.Journal.create(self.journals, deploying.header("apply", "chest")).write(
            "before", step="terraform chest", kind="terraform", name="chest", was={}
        )

    def made(self) -> list[str]:
        """What the state holds."""
        terraform = self.terraform()
        outcome = terraform.plan(self.directory / "look.tfplan", destroy=True)
        return sorted(each.address for each in outcome.planned)


@pytest.fixture
def rooted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rooted]:
    (tmp_path / "empty.tfrc").touch()
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(tmp_path / "empty.tfrc"))
    made = Rooted(tmp_path)
    yield made
    made.control.close()


@needs_terraform
def test_saved_plan_is_applied_once_and_is_gone_then(rooted: Rooted) -> None:
    rooted.planned(TWO)
    (rooted.directory / "ready").touch()

    report = rooted.run()

    assert report.done == ("terraform: 2 changes",)
    assert rooted.made() == ["terraform_data.first", "terraform_data.second"]
    assert not rooted.file.exists()


@needs_terraform
def test_saved_plan_that_is_gone_is_not_made_anew(rooted: Rooted) -> None:
    rooted.planned(TWO)
    rooted.file.unlink()

    with pytest.raises(PreconditionFailed, match="good for one apply"):
        rooted.run()

    assert rooted.made() == []


@needs_terraform
def test_run_that_died_before_terraform_began_applies_what_was_approved(rooted: Rooted) -> None:
    rooted.planned(TWO)
    (rooted.directory / "ready").touch()
    rooted.killed()

    report = rooted.run()

    assert report.resumed
    assert rooted.made() == ["terraform_data.first", "terraform_data.second"]


@needs_terraform
def test_run_that_died_while_terraform_finished_has_nothing_left_to_do(rooted: Rooted) -> None:
    rooted.planned(TWO)
    (rooted.directory / "ready").touch()
    terraform = rooted.terraform()
    terraform.apply(terraform.plan(rooted.directory / "other.tfplan"))
    rooted.killed()

    rooted.run()

    assert [each.ended for each in journal.all_of(rooted.journals)] == ["finished"]
    assert not rooted.file.exists()


@needs_terraform
def test_what_failed_half_way_is_gone_on_with_where_only_approved_things_are_left(rooted: Rooted) -> None:
    rooted.planned(TWO)

    with pytest.raises(TerraformError, match="not ready"):
        rooted.run()
    half = rooted.made()
    (rooted.directory / "ready").touch()
    rooted.run()

    assert half == ["terraform_data.first"]
    assert rooted.made() == ["terraform_data.first", "terraform_data.second"]


@needs_terraform
@pytest.mark.parametrize("text", [TWO + THIRD, TWO.replace('"2"', '"4"')], ids=["one more", "another value"])
def test_what_nobody_approved_is_not_applied_on_the_way(rooted: Rooted, text: str) -> None:
    rooted.planned(TWO)
    with pytest.raises(TerraformError, match="not ready"):
        rooted.run()
    (rooted.directory / "main.tf").write_text(text)
    (rooted.directory / "ready").touch()

    with pytest.raises(Conflict, match="is not what was approved: terraform:terraform_data"):
        rooted.run()

    assert rooted.made() == ["terraform_data.first"]


@needs_terraform
def test_ctrl_c_stops_terraform_between_two_resources_and_the_run_goes_on_later(rooted: Rooted) -> None:
    rooted.planned(SLOW)
    interrupts = Interrupts()

    def ask() -> None:
        until = time.monotonic() + 30
        while not (rooted.directory / "begun").exists() and time.monotonic() < until:
            time.sleep(0.02)
        interrupts.ask()

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(Stopped, match="what was done is kept"):
        rooted.run(interrupts=interrupts, back_on_failure=True)
    asking.join()
    stopped = rooted.made()
    rooted.run()

    # What was cut short is damaged, and made anew.
    assert stopped == ["terraform_data.slow"]
    assert rooted.made() == ["terraform_data.never", "terraform_data.slow"]
    assert [each.ended for each in journal.all_of(rooted.journals)] == ["finished"]


def variables_of(root: str) -> set[str]:
    text = (SOURCE / "roots" / root / "variables.tf").read_text(encoding="utf-8")
    return {line.split('"')[1] for line in text.splitlines() if line.startswith("variable ")}


LOCAL = {"kind": "local", "project": "local", "location": "europe-west4", "url": "https://127.0.0.1:8443"}
BY_TERRAFORM = {"terraform": {"root": "infra"}, "labels": {"team": "imaging"}}


def test_cloud_root_has_every_variable_that_it_is_given() -> None:
    spec = deploy_plans.spec(
        model={"endpoint": {"id": "4100000001", "dedicated": False}},
        network={"private": True, "allowed_projects": ["hospital-two", "hospital-one"]},
        policy={"allowed_locations": ["europe-west4"]},
        **BY_TERRAFORM,
    )

    given = root_variables(spec)

    assert set(given) == {"project_id", "location", "labels", "endpoints", "allowed_locations"}
    assert set(given) <= variables_of("cloud")
    access = {"mode": "private", "allowed_projects": ["hospital-one", "hospital-two"]}
    assert given["endpoints"] == {"reader": {"id": "4100000001", "display_name": "chest reader", "access": access}}


def test_local_root_has_every_variable_that_it_is_given() -> None:
    spec = deploy_plans.spec(target=LOCAL, model={"endpoint": {"id": "4100000001"}}, **BY_TERRAFORM)

    given = root_variables(spec)

    assert set(given) <= variables_of("local")
    assert given["endpoints"]["reader"]["mode"] == "dedicated"
    assert "127.0.0.1" not in str(given)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        (
            {"keys": {"kms_key_name": "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"}},
            "keys.kms_key_name",
            "the root makes the key",
        ),
        (
            {
                "target": LOCAL,
                "network": {"private": True},
                "model": {"endpoint": {"id": "4100000001", "dedicated": False}},
            },
            "network.private",
            "no Private Service Connect",
        ),
    ],
)
def test_what_a_root_decides_itself_is_refused_in_the_specification(
    changes: dict[str, Any], field: str, words: str
) -> None:
    spec = deploy_plans.spec(**{"model": {"endpoint": {"id": "4100000001"}}, **BY_TERRAFORM, **changes})

    with pytest.raises(ConfigError, match=words) as refused:
        root_variables(spec)

    assert refused.value.field == field


def by_terraform(found: Reality, **more: Any) -> todo.Job:
    """A plan that has a change of Terraform's."""
    spec = deploy_plans.spec(model={"endpoint": {"id": "1234"}}, terraform={"root": "infra"})
    lock = deploy_plans.lock(spec)
    rows = diff.rows(
        spec, lock, found, terraform=(Row("terraform:google_vertex_ai_endpoint.this", "replace"),), **more
    )
    machines = capacity.of(spec, found, rows)
    plan = Plan(
        deployment=spec.name,
        target="projects/radiology",
        made_at="2026-11-26T00:00:00Z",
        medport="1",
        inputs=Inputs("0" * 64, lock.lock_id, {}),
        rows=rows,
        cost=cost.of(machines, kind="vertex", location="europe-west4"),
        quotas=(),
    )
    control = ControlPlane(deploying.Target("http://127.0.0.1:9"), None)
    return todo.Job(spec, lock, plan, control, None, Terraform(Path("infra")), Path("plan.tfplan"), lambda: None)


def test_what_stands_on_an_endpoint_goes_before_terraform_and_the_new_fleet_comes_after() -> None:
    spec = deploy_plans.spec(model={"endpoint": {"id": "1234"}}, terraform={"root": "infra"})
    found = deploy_plans.deployed(spec, deploy_plans.lock(spec))

    steps = todo.steps(by_terraform(found, replaced=frozenset({"1234"})))

    kinds = [step.kind for step in steps]
    assert kinds == ["undeploy", "terraform", "version", "deployed_model", "traffic", "record"]
    assert [step.kind for step in steps if step.commits] == ["record"]


def test_terraforms_changes_are_not_left_out_where_there_is_no_terraform() -> None:
    job = dataclasses.replace(by_terraform(Reality()), terraform=None)

    with pytest.raises(PreconditionFailed, match="there is no terraform"):
        todo.steps(job)
