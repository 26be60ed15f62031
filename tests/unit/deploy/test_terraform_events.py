"""Lines of terraform as values, whatever they hold."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport_deploy.terraform.errors import StateLocked, error_of
from medport_deploy.terraform.events import Diagnostic, Drifted, Summary, Working, event_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def test_a_drifted_resource_has_its_address() -> None:
    line = {"type": "resource_drift", "change": {"resource": {"addr": "google_x.a"}, "action": "update"}}

    assert event_of(json.dumps(line)) == Drifted("google_x.a", "update")


def test_progress_has_its_seconds() -> None:
    hook = {"resource": {"addr": "google_x.a"}, "action": "create", "elapsed_seconds": 10}

    found = event_of(json.dumps({"type": "apply_progress", "hook": hook}))

    assert found == Working("google_x.a", "create", "going on", 10.0)


def test_an_imported_resource_counts() -> None:
    changes = {"operation": "plan", "add": 0, "change": 0, "remove": 0, "import": 1}

    found = event_of(json.dumps({"type": "change_summary", "changes": changes}))

    assert isinstance(found, Summary)
    assert found.total == 1


def test_a_snippet_of_source_is_not_kept() -> None:
    said = {"severity": "error", "summary": "no", "detail": "", "snippet": {"code": 'password = "canary"'}}

    assert "canary" not in repr(event_of(json.dumps({"type": "diagnostic", "diagnostic": said})))


@pytest.mark.parametrize("line", ["", "Terraform v1", "{", "[]", '{"type": "version"}', "null"])
def test_other_lines_are_no_events(line: str) -> None:
    assert event_of(line) is None


@given(st.sampled_from(["diagnostic", "planned_change", "outputs", "apply_start", "change_summary"]), JSON)
def test_a_line_of_another_shape_is_an_event_or_none_and_never_an_exception(kind: str, value: object) -> None:
    keys = ("diagnostic", "change", "outputs", "hook", "changes")

    event_of(json.dumps({"type": kind, **dict.fromkeys(keys, value)}))


def test_the_holder_of_the_lock_and_the_remedy_are_told() -> None:
    detail = (
        "state blob is already locked\nLock Info:\n  ID:        1234-ab\n  Path:      x\n  Who:       ci@host\n"
    )

    error = error_of(
        "plan", 1, [Diagnostic("error", "Error acquiring the state lock", detail)], "", directory="roots/cloud"
    )

    assert isinstance(error, StateLocked)
    assert error.lock_id == "1234-ab"
    assert "ci@host" in str(error)
    assert "terraform -chdir=roots/cloud force-unlock 1234-ab" in str(error)
