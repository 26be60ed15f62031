"""What runs came to: whole lines only, and from them what serves, what is kept, and where there is to go back."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from medport.errors import ConfigError
from medport_deploy.past import history
from medport_deploy.past.history import Deployed, Entry

NOW = datetime(2026, 11, 27, 8, tzinfo=UTC)
LATER, EARLIER = "2026-11-27T09:00:00.000000Z", "2026-11-27T07:00:00.000000Z"
A, B, C = "aaaaaaaa" + "0" * 56, "bbbbbbbb" + "0" * 56, "cccccccc" + "0" * 56


def entry(lock_id: str = A, outcome: Any = "verified", verb: Any = "apply", id_: str = "1", **more: Any) -> Entry:
    models = {} if outcome in ("failed", "destroyed", "taken back") else {"reader": deployed(id_)}
    return Entry(verb=verb, outcome=outcome, lock_id=lock_id, **{"models": models, **more})


def deployed(id_: str) -> Deployed:
    return Deployed(endpoint="e", model_id="m", version="1", deployed_model=id_, revision="9" * 40)


def test_entries_are_read_as_they_were_written_the_oldest_first(tmp_path: Path) -> None:
    wrote = [entry(A), entry(B, "failed", why="VerificationError: gate"), entry(B, retained={"1": LATER})]
    directory = tmp_path / "deploy" / "chest"

    for each in wrote:
        history.append(directory, each)

    assert history.read(directory) == wrote
    assert stat.S_IMODE((directory / history.FILE_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_deployment_without_a_history_has_no_entries_and_no_file_is_made(tmp_path: Path) -> None:
    assert history.read(tmp_path / "none") == []
    assert list(tmp_path.iterdir()) == []


def test_line_that_was_cut_off_is_not_read_and_the_next_one_takes_its_place(tmp_path: Path) -> None:
    history.append(tmp_path, entry(A))
    file = tmp_path / history.FILE_NAME
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:-20] * 3)

    before = history.read(tmp_path)
    history.append(tmp_path, entry(B))

    assert [each.lock_id for each in before] == [A]
    assert [each.lock_id for each in history.read(tmp_path)] == [A, B]


@pytest.mark.parametrize("line", ["{}", "[]", "no json", '{"format":1,"verb":"paint"}'])
def test_damaged_line_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    history.append(tmp_path, entry(A))
    with (tmp_path / history.FILE_NAME).open("a") as file:
        file.write(line + "\n")

    with pytest.raises(ConfigError, match=r"line 2|another version"):
        history.read(tmp_path)


def test_time_that_is_none_is_damage_and_no_accident(tmp_path: Path) -> None:
    history.append(tmp_path, entry(A, retained={"1": LATER}))
    file = tmp_path / history.FILE_NAME

    for wrong in ("2099-01-01T00:00:00", "soon"):
        file.write_text(file.read_text().replace(LATER, wrong))
        with pytest.raises(ConfigError, match="damaged in line 1"):
            history.read(tmp_path)
        file.write_text(file.read_text().replace(wrong, LATER))


def test_entry_says_who_did_it_and_with_which_medport() -> None:
    said = entry().as_dict()

    assert "@" in said["by"]
    assert (said["medport"], said["format"]) == ("0.1.0", 1)


def test_what_serves_is_what_was_last_verified() -> None:
    entries = [entry(A, id_="1"), entry(B, id_="2"), entry(C, "failed"), entry(C, "held", id_="3")]

    found = history.serving(entries)

    assert found is not None
    assert found.lock_id == B
    assert history.serving([*entries, entry(B, "destroyed", "destroy")]) is None


def test_way_back_is_the_last_verified_lock_that_is_another_one() -> None:
    entries = [entry(A), entry(B), entry(B), entry(C, "failed")]

    found = history.last_verified(entries, other_than=B)

    assert found is not None
    assert found.lock_id == A
    assert history.last_verified([entry(B)], other_than=B) is None


def test_lock_that_a_rollback_left_is_no_way_back() -> None:
    entries = [entry(A), entry(B), entry(C), entry(B, verb="rollback", rejected=C)]

    found = history.last_verified(entries, other_than=B)

    assert found is not None
    assert found.lock_id == A
    again = history.last_verified([*entries, entry(C), entry(A)], other_than=A)
    assert again is not None
    assert again.lock_id == C


def test_nothing_before_everything_was_destroyed_is_a_way_back() -> None:
    entries = [entry(A), entry(A, "destroyed", "destroy"), entry(B)]

    assert history.last_verified(entries, other_than=B) is None


def test_lock_is_found_by_the_beginning_of_its_id() -> None:
    entries = [entry(A, id_="1"), entry(A, id_="2"), entry("aaaaaaaa" + "1" * 56)]

    found = history.verified(entries, A[:12])

    assert found is not None
    assert found.models["reader"].deployed_model == "2"
    assert history.verified(entries, B) is None
    with pytest.raises(ConfigError, match="several"):
        history.verified(entries, A[:8])
    with pytest.raises(ConfigError, match="too short"):
        history.verified(entries, "aaaa")


def test_old_fleet_is_kept_until_its_time_and_through_a_later_run_that_failed() -> None:
    entries = [entry(B, id_="2", retained={"1": LATER, "0": EARLIER}), entry(C, "failed")]

    assert history.retained(entries, NOW) == {"1": LATER}


def test_fleet_that_serves_again_or_was_let_go_is_kept_no_more() -> None:
    entries = [entry(B, id_="2", retained={"1": LATER})]

    assert history.retained([*entries, entry(A, verb="rollback", id_="1")], NOW) == {}
    assert history.retained([*entries, entry(B, verb="promote", id_="2")], NOW) == {}
    assert history.retained([*entries, entry(B, "destroyed", "destroy")], NOW) == {}


def test_history_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"history\.jsonl cannot be written"):
        history.append(tmp_path / "file", entry())
