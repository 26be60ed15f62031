"""The verbs over the real terraform, with resources that need no provider."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medport.errors import ConfigError
from medport_deploy.terraform.errors import Interrupted, StateLocked, TerraformError
from medport_deploy.terraform.events import Event, Outputs, Working
from medport_deploy.terraform.root import Terraform

pytestmark = [
    pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed"),
    pytest.mark.usefixtures("no_cli_configuration"),
]

ROOT = """
variable "said" { type = any }
variable "token" {
  type      = string
  ephemeral = true
  default   = "none"
}
resource "terraform_data" "first" { input = var.said }
output "said" { value = terraform_data.first.output }
output "secret" {
  value     = "not for the log"
  sensitive = true
}
"""
SLOW = """
resource "terraform_data" "quick" {}
resource "terraform_data" "slow" {
  depends_on = [terraform_data.quick]
  provisioner "local-exec" { command = "touch begun; sleep 3; touch done" }
}
resource "terraform_data" "never" { depends_on = [terraform_data.slow] }
"""


@pytest.fixture
def no_cli_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.tfrc").touch()
    monkeypatch.setenv("TF_CLI_CONFIG_FILE", str(tmp_path / "empty.tfrc"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "main.tf").write_text(ROOT)
    return tmp_path / "root"


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "main.tf").write_text(SLOW)
    return tmp_path / "slow"


def wait_for(there: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def applied(terraform: Terraform) -> None:
    terraform.init()
    terraform.apply(terraform.plan(terraform.directory / "saved.tfplan"))


def scratch_of(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("medport-terraform-*"))


def test_plan_apply_and_plan_again_say_what_there_is_to_do(root: Path) -> None:
    terraform = Terraform(root, variables={"said": "hello"})
    terraform.init()

    first = terraform.plan(root / "saved.tfplan")
    done = terraform.apply(first)
    second = terraform.plan(root / "saved.tfplan")

    assert (first.changes, first.summary.add, [each.action for each in first.planned]) == (True, 1, ["create"])
    assert (done.add, done.total) == (1, 1)
    assert (second.changes, second.summary.total) == (False, 0)


def test_apply_asks_nobody_although_a_terminal_is_there(root: Path) -> None:
    """python-terraform's apply waits for an answer on its inherited stdin."""
    terraform = Terraform(root, variables={"said": "x"})
    terraform.init()
    plan = terraform.plan(root / "saved.tfplan")
    reading, writing = os.pipe()  # never written to: whoever reads it hangs
    kept = os.dup(0)
    os.dup2(reading, 0)
    try:
        assert terraform.apply(plan, deadline_s=30).add == 1
    finally:
        os.dup2(kept, 0)
        for each in (reading, writing, kept):
            os.close(each)


def test_destroying_is_applying_a_plan_to_destroy(root: Path) -> None:
    terraform = Terraform(root, variables={"said": "x"})
    applied(terraform)

    gone = terraform.apply(terraform.plan(root / "saved.tfplan", destroy=True))

    assert gone.remove == 1
    assert json.loads((root / "terraform.tfstate").read_text())["resources"] == []


def test_outputs_are_read_as_values_all_together(root: Path) -> None:
    terraform = Terraform(root, variables={"said": {"a": [1, None, "ü"]}})
    applied(terraform)

    assert terraform.output() == {"said": {"a": [1, None, "ü"]}, "secret": "not for the log"}


def test_changes_are_no_error_and_a_wrong_configuration_is(root: Path) -> None:
    terraform = Terraform(root, variables={"said": "x"})
    terraform.init()

    assert terraform.plan(root / "saved.tfplan").changes
    (root / "more.tf").write_text('resource "terraform_data" "b" { input = local.nowhere }')
    with pytest.raises(TerraformError, match=r"more\.tf:1: .*undeclared local value"):
        terraform.plan(root / "saved.tfplan")
    assert not (root / "saved.tfplan").exists()


def test_validate_names_file_and_line_of_a_misspelt_argument(root: Path) -> None:
    (root / "more.tf").write_text('\nresource "terraform_data" "b" { inptu = 1 }')
    terraform = Terraform(root)
    terraform.init()

    (found,) = terraform.validate()

    assert (found.severity, found.file, found.line) == ("error", "more.tf", 2)


def test_no_verb_is_made_of_a_misspelt_name(root: Path) -> None:
    with pytest.raises(AttributeError):
        Terraform(root).pln()  # type: ignore[attr-defined]


def test_four_at_once_do_not_share_variable_files(tmp_path: Path) -> None:
    def one(number: int) -> object:
        directory = tmp_path / f"root-{number}"
        directory.mkdir()
        (directory / "main.tf").write_text(ROOT)
        terraform = Terraform(directory, variables={"said": number})
        applied(terraform)
        return terraform.output()["said"]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [0, 1, 2, 3]


@pytest.mark.parametrize("said", ['a"b', "${x} %{y}", "two\nlines", "汉字 ü", "", {"k": ["${v}"]}])
def test_values_of_variables_arrive_as_they_are(root: Path, said: object) -> None:
    terraform = Terraform(root, variables={"said": said})
    applied(terraform)

    assert terraform.output()["said"] == said


def test_nothing_is_left_in_the_temporary_directory_after_a_failure(root: Path, tmp_path: Path) -> None:
    (root / "more.tf").write_text("nonsense {")
    terraform = Terraform(root, variables={"said": "patient-canary"})

    with pytest.raises(TerraformError):
        terraform.init()
    with pytest.raises(ConfigError, match="there is no"):
        Terraform(root, variables={"said": "x"}, binary=str(tmp_path / "absent")).plan(root / "saved.tfplan")

    assert scratch_of(tmp_path) == []


def test_a_secret_is_in_no_file_event_message_or_log(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    events: list[Event] = []
    terraform = Terraform(
        root, variables={"said": "x"}, secrets={"token": "s3cr3t-canary"}, on_event=events.append
    )

    applied(terraform)
    held = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())

    assert b"s3cr3t-canary" not in held
    assert "s3cr3t-canary" not in repr(events) + repr(terraform) + caplog.text
    assert [event.values["secret"] for event in events if isinstance(event, Outputs)] == [None, None]
    assert logging.getLogger().handlers == [] or "s3cr3t-canary" not in caplog.text


def test_saved_plan_and_state_are_for_their_owner_alone_and_the_plan_goes(root: Path) -> None:
    terraform = Terraform(root, variables={"said": "x"})
    terraform.init()
    plan = terraform.plan(root / "saved.tfplan")

    mode = plan.file.stat().st_mode & 0o777
    terraform.apply(plan)

    assert mode == 0o600
    assert (root / "terraform.tfstate").stat().st_mode & 0o077 == 0
    assert not plan.file.exists()


def test_cancel_finishes_the_call_under_way_and_begins_no_other(slow: Path, tmp_path: Path) -> None:
    terraform = Terraform(slow)
    terraform.init()
    plan = terraform.plan(slow / "saved.tfplan")
    timer = threading.Thread(
        target=lambda: (wait_for((slow / "begun").exists), terraform.cancel.set()), daemon=True
    )
    timer.start()

    with pytest.raises(Interrupted, match="in the state"):
        terraform.apply(plan)
    timer.join()
    state = json.loads((slow / "terraform.tfstate").read_text())

    assert {each["name"] for each in state["resources"]} >= {"quick"}
    assert "never" not in {each["name"] for each in state["resources"]}
    assert not list(slow.glob(".terraform.tfstate.lock.info"))
    assert scratch_of(tmp_path) == []


def test_a_deadline_stops_a_run(slow: Path) -> None:
    terraform = Terraform(slow)
    terraform.init()

    with pytest.raises(Interrupted):
        terraform.apply(terraform.plan(slow / "saved.tfplan"), deadline_s=0.7)


def test_events_come_while_terraform_works(slow: Path) -> None:
    seen: list[tuple[str, bool]] = []
    terraform = Terraform(slow, on_event=lambda event: seen.append((repr(event), (slow / "done").exists())))
    applied(terraform)

    begun = [early for text, early in seen if "terraform_data.slow" in text and "'started'" in text]

    assert begun == [False]


def test_what_a_callback_raises_stops_terraform_first(slow: Path) -> None:
    def told(event: Event) -> None:
        if isinstance(event, Working) and event.address == "terraform_data.slow":
            raise KeyboardInterrupt

    terraform = Terraform(slow)
    terraform.init()
    plan = terraform.plan(slow / "saved.tfplan")
    terraform.on_event = told

    with pytest.raises(KeyboardInterrupt):
        terraform.apply(plan)

    assert not list(slow.glob(".terraform.tfstate.lock.info"))


def test_terraform_outlives_a_killed_caller_and_saves_what_it_did(slow: Path) -> None:
    """Through a pipe it would die of SIGPIPE at its next line, with the state locked."""
    Terraform(slow).init()
    program = (
        "from pathlib import Path; from medport_deploy.terraform.root import Terraform; import sys; "
        "t = Terraform(Path(sys.argv[1])); t.apply(t.plan(Path(sys.argv[1]) / 'saved.tfplan'))"
    )
    caller = subprocess.Popen([sys.executable, "-c", program, str(slow)])
    wait_for((slow / "begun").exists)

    caller.send_signal(signal.SIGKILL)
    caller.wait()
    wait_for((slow / "done").exists)
    wait_for(lambda: (slow / "terraform.tfstate").exists() and not list(slow.glob("*.lock.info")))
    wait_for(lambda: not list(slow.glob(".terraform.tfstate.lock.info")))

    state = json.loads((slow / "terraform.tfstate").read_text())
    assert {each["name"] for each in state["resources"]} == {"quick", "slow", "never"}


def test_a_state_that_another_run_holds_is_named_and_left_alone(slow: Path) -> None:
    first, second = Terraform(slow), Terraform(slow, lock_timeout="0s")
    first.init()
    plan = first.plan(slow / "saved.tfplan")
    running = threading.Thread(target=first.apply, args=(plan,))
    running.start()
    wait_for((slow / "begun").exists)

    with pytest.raises(StateLocked) as refused:
        second.plan(slow / "other.tfplan")
    running.join()

    assert refused.value.lock_id
    assert f"force-unlock {refused.value.lock_id}" in str(refused.value)
    assert (slow / "done").exists()


def test_what_our_own_environment_says_to_terraform_does_not_reach_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CLI_ARGS_plan", "-nonsense")
    monkeypatch.setenv("TF_LOG", "TRACE")
    monkeypatch.setenv("TF_VAR_said", "from outside")
    terraform = Terraform(root, variables={"said": "from here"})

    applied(terraform)

    assert terraform.output()["said"] == "from here"


def test_what_changed_behind_terraforms_back_is_drift_and_stays(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "main.tf").write_text('resource "terraform_data" "a" { input = 1 }')
    terraform = Terraform(tmp_path / "root")
    applied(terraform)
    state = (tmp_path / "root" / "terraform.tfstate").read_bytes()

    assert terraform.drift() == ()
    assert (tmp_path / "root" / "terraform.tfstate").read_bytes() == state


def test_a_lock_file_that_may_not_change_is_the_default(root: Path, tmp_path: Path) -> None:
    recording = tmp_path / "terraform-recording"
    recording.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexec {shutil.which("terraform")} "$@"\n')
    recording.chmod(0o755)
    terraform = Terraform(root, variables={"said": 1}, binary=str(recording))

    terraform.init()
    terraform.init(readonly_lock=False)
    first, second = [line for line in (tmp_path / "asked").read_text().splitlines() if line.startswith("init")]

    assert "-lockfile=readonly" in first
    assert "-lockfile" not in second


def test_a_terraform_that_is_too_old_is_refused(root: Path, tmp_path: Path) -> None:
    old = tmp_path / "terraform-1.5"
    old.write_text('#!/bin/sh\necho \'{"terraform_version": "1.5.7"}\'\n')
    old.chmod(0o755)

    with pytest.raises(ConfigError, match=r"1\.5\.7 is older than 1\.11"):
        Terraform(root, binary=str(old)).init()
