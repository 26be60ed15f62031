"""``medport models list | show``: the versions of a model, which bytes each is, and where it is deployed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.listing import (
    IMAGE,
    LOCK,
    OTHER_REVISION,
    PARENT,
    REVISION,
    SNAPSHOT,
    Listing,
    listing,
    version,
)

WHERE = [{"endpoint": f"{PARENT}/endpoints/chest", "deployedModelId": "11"}]


@pytest.fixture
def plane() -> Iterator[Listing]:
    numbered = [version("mg", str(i)) for i in (1, 2, 10)]
    numbered[1] |= {"versionAliases": ["default", "blue"], "deployedModels": WHERE}
    with listing(
        Listing(versions=[*numbered, version("ms", "1", "default"), version("x", "1", "default")])
    ) as shown:
        yield shown


@pytest.fixture
def run(medport: Any, plane: Listing) -> Any:
    """``run("list")``, on the plane."""
    return lambda *given: medport("models", *given, "--url", f"http://127.0.0.1:{plane.port}", "--timeout", "20")


class TestList:
    def test_every_model_is_told_with_all_its_versions_in_order(self, run: Any) -> None:
        found = run("list", "--json").json["models"]

        assert [each["id"] for each in found] == ["mg", "ms", "x"]
        assert [each["version"] for each in found[0]["versions"]] == ["1", "2", "10"]
        assert found[0]["default_version"] == "2"
        assert found[0]["versions"][1]["aliases"] == ["default", "blue"]
        assert found[0]["versions"][1]["deployed_to"] == [
            {"endpoint": f"{PARENT}/endpoints/chest", "deployed_model_id": "11"}
        ]
        assert found[0]["versions"][1]["pins"]["lock_id"] == LOCK

    def test_a_table_has_a_row_for_each_version_with_short_pins(self, run: Any) -> None:
        done = run("list")

        lines = [line.split() for line in done.out.splitlines() if line.strip()]
        pins = [value[:12] for value in (IMAGE, REVISION, SNAPSHOT, LOCK)]
        assert " ".join(lines[0]) == "model name version aliases image revision snapshot lock deployed to"
        assert lines[2] == ["mg", "chest", "reader", "1", "-", *pins, "-"]
        assert lines[3] == ["2", "default,", "blue", *pins, "chest/11"]
        assert (done.code, done.err) == (0, "")

    def test_a_limit_counts_models_and_not_versions(self, run: Any) -> None:
        found = run("list", "--json", "--limit", "1").json["models"]

        assert [(each["id"], len(each["versions"])) for each in found] == [("mg", 3)]

    def test_a_filter_goes_with_the_list_of_models_and_not_of_versions(self, run: Any, plane: Listing) -> None:
        run("list", "--json", "--filter", "labels.a:*")

        filtered = {path.rpartition("/")[2] for path, query in plane.asked if query.get("filter") == "labels.a:*"}
        assert filtered == {"models"}

    @pytest.mark.parametrize("status", [403, 404])
    def test_what_cannot_list_versions_shows_the_one_it_lists(self, run: Any, plane: Listing, status: int) -> None:
        plane.refused["mg:listVersions"] = [(status, "no")]

        found = run("list", "--json").json["models"]

        assert [each["version"] for each in found[0]["versions"]] == ["2"]
        assert [each["version"] for each in found[1]["versions"]] == ["1"]

    def test_disagreements_are_told_beside_the_table(self, run: Any, plane: Listing) -> None:
        plane.versions[0]["containerSpec"]["env"][1]["value"] = OTHER_REVISION

        done = run("list")

        assert done.code == 0
        assert done.err.startswith("mg@1: revision: 0123456789ab… by its labels, ffffffffffff… by the environment")
        assert done.err.count("\n") == 1

    def test_a_server_without_a_list_of_models_is_told_so(self, run: Any, plane: Listing) -> None:
        plane.refused["/models"] = [(404, "no such route")]

        done = run("list", "--json")

        assert (done.code, done.error["type"]) == (1, "NotFound")


class TestShow:
    @pytest.mark.parametrize(
        ("name", "number"),
        [("mg", "2"), ("mg@1", "1"), ("mg@blue", "2"), (f"{PARENT}/models/mg@10", "10")],
    )
    def test_a_version_is_named_by_number_or_alias_and_by_none_the_default(
        self, run: Any, name: str, number: str
    ) -> None:
        found = run("show", name, "--json").json

        assert found["version"]["version"] == number
        assert [each["version"] for each in found["model"]["versions"]] == ["1", "2", "10"]

    def test_all_of_it_is_told_in_full(self, run: Any) -> None:
        out = run("show", "mg").out

        for pin in (IMAGE, REVISION, SNAPSHOT, LOCK, "google/medgemma-4b-it"):
            assert pin in out
        assert "chest/11" in out
        assert "1, 2 (default, blue), 10" in out
        assert "!" not in out

    def test_pins_that_nobody_says_are_warned_of(self, run: Any, plane: Listing) -> None:
        plane.versions[3] |= {"labels": {}, "containerSpec": {"imageUri": "registry.example/serving"}}

        assert [each.partition(":")[0] for each in run("show", "ms", "--json").json["version"]["warnings"]] == [
            "revision", "snapshot sha256", "image digest", "lock",
        ]  # fmt: skip
        assert run("show", "ms").out.count("  ! ") == 4

    def test_a_model_with_no_container_is_not_said_to_have_a_tag(self, run: Any, plane: Listing) -> None:
        del plane.versions[3]["containerSpec"]
        del plane.versions[3]["labels"]["medport-image"]

        assert run("show", "ms", "--json").json["version"]["warnings"] == []

    @pytest.mark.parametrize(
        "arguments",
        [
            [f"--revision={OTHER_REVISION}"],
            ["--revision", OTHER_REVISION],
            ["--revision", "a", "--revision", OTHER_REVISION],
        ],
    )
    def test_a_revision_in_the_arguments_counts_in_either_form_and_the_last_wins(
        self, run: Any, plane: Listing, arguments: list[str]
    ) -> None:
        plane.versions[3]["containerSpec"] = {"args": arguments}
        del plane.versions[3]["labels"]["medport-rev"]

        assert run("show", "ms", "--json").json["version"]["pins"]["revision"] == OTHER_REVISION

    def test_an_argument_that_lacks_its_value_is_no_fault(self, run: Any, plane: Listing) -> None:
        plane.versions[3]["containerSpec"]["args"] = ["--model=gs://bucket/path", "--revision"]

        pins = run("show", "ms", "--json").json["version"]["pins"]

        assert (pins["revision"], pins["model_id"]) == (REVISION, "google/medgemma-4b-it")

    @pytest.mark.parametrize(
        "name", ["", "mg@", "mg@1@2", "@1", "mg@a/b", "mg:listVersions", f"{PARENT}/endpoints/e"]
    )
    def test_what_is_no_name_is_refused_before_anything_is_sent(self, run: Any, plane: Listing, name: str) -> None:
        done = run("show", name, "--json")

        assert (done.code, done.error["type"], done.error["field"]) == (1, "InputError", "name")
        assert plane.asked == []

    def test_what_is_not_there_is_not_found(self, run: Any) -> None:
        assert run("show", "mg@3", "--json").error["type"] == "NotFound"
