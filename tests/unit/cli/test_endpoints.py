"""``medport endpoints list | show``: what is deployed where, which bytes that is, and where that is in doubt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority
from support.listing import (
    IMAGE,
    LOCATION,
    LOCK,
    OTHER_LOCK,
    OTHER_REVISION,
    PARENT,
    REVISION,
    SNAPSHOT,
    Listing,
    deployed,
    endpoint,
    label,
    listing,
    version,
)
from support.running import LoopThread
from support.vertex import PARENT as VERTEX_PARENT
from support.vertex import Account, Vertex, reply

KEY = "a-secret-key"


@pytest.fixture
def plane() -> Iterator[Listing]:
    both = endpoint(
        "chest", deployed("11", "mg", "2"), deployed("12", "mg", "1"), trafficSplit={"11": 80, "12": 20}
    )
    shown = Listing([both, endpoint("empty"), endpoint("skin", deployed("21", "ms", "1"))])
    shown.versions = [version("mg", "1"), version("mg", "2", "default"), version("ms", "1", "default")]
    with listing(shown):
        yield shown


@pytest.fixture
def run(medport: Any, plane: Listing) -> Any:
    """``run("list")``, on the plane."""
    return lambda *given: medport(
        "endpoints", *given, "--url", f"http://127.0.0.1:{plane.port}", "--timeout", "20"
    )


def only(run: Any, name: str = "chest") -> Any:
    return run("show", name, "--json").json["endpoint"]["deployed_models"][0]


class TestList:
    def test_every_page_is_read_and_every_deployed_model_told(self, run: Any, plane: Listing) -> None:
        found = run("list", "--json").json["endpoints"]

        assert [each["id"] for each in found] == ["chest", "empty", "skin"]
        assert [(d["id"], d["version"], d["traffic_percent"]) for d in found[0]["deployed_models"]] == [
            ("11", "2", 80),
            ("12", "1", 20),
        ]
        assert found[0]["dedicated_dns"] == "chest.example"
        assert found[1]["deployed_models"] == []
        assert [query.get("pageToken") for path, query in plane.asked if path.endswith("/endpoints")] == [
            None,
            "2",
        ]

    def test_a_table_has_a_row_for_each_deployed_model_with_short_pins(self, run: Any) -> None:
        done = run("list")

        lines = [line.split() for line in done.out.splitlines() if line.strip()]
        assert lines[0] == ["endpoint", "name", "host", "deployed", "model", "share", "replicas", "status",
                            "revision", "snapshot", "lock"]  # fmt: skip
        pins = [REVISION[:12], SNAPSHOT[:12], LOCK[:12]]
        said = ["1", "of", "1", "to", "3", "available", *pins]
        assert lines[2] == ["chest", "the", "chest", "chest.example", "11", "mg@2", "80", "%", *said]
        assert lines[3] == ["12", "mg@1", "20", "%", *said]
        assert lines[4] == ["empty", "the", "empty", "empty.example", *["-"] * 8]
        assert (done.code, done.err) == (0, "")

    def test_the_pins_are_those_of_the_version_that_is_deployed(self, run: Any, plane: Listing) -> None:
        plane.versions[0]["labels"]["medport-rev"] = OTHER_REVISION
        plane.versions[0]["containerSpec"] = {}

        both = run("list", "--json").json["endpoints"][0]["deployed_models"]

        assert [each["pins"]["revision"] for each in both] == [REVISION, OTHER_REVISION]

    def test_a_version_deployed_twice_is_asked_for_once(self, run: Any, plane: Listing) -> None:
        plane.endpoints.append(endpoint("more", deployed("31", "mg", "2")))

        run("list", "--json")

        assert plane.paths().count(f"/v1/{PARENT}/models/mg@2") == 1

    def test_a_limit_stops_the_reading(self, run: Any, plane: Listing) -> None:
        found = run("list", "--json", "--limit", "1").json["endpoints"]

        assert [each["id"] for each in found] == ["chest"]
        assert plane.asked[0][1]["pageSize"] == "1"
        assert sum(path.endswith("/endpoints") for path in plane.paths()) == 1

    def test_a_filter_is_the_servers_to_understand(self, run: Any, plane: Listing) -> None:
        run("list", "--json", "--filter", 'labels.team="chest" AND display_name:x')

        assert all(
            q["filter"] == 'labels.team="chest" AND display_name:x' for p, q in plane.asked if p.endswith("s")
        )

    def test_disagreements_are_told_beside_the_table(self, run: Any, plane: Listing) -> None:
        plane.versions[1]["containerSpec"]["args"] = [f"--revision={OTHER_REVISION}"]

        done = run("list")

        assert done.code == 0
        assert "chest, 11: revision: 0123456789ab… by its labels" in done.err
        assert "ffffffffffff… by the arguments" in done.err
        assert "chest, 12" not in done.err

    def test_nothing_there_is_an_empty_list(self, run: Any, plane: Listing) -> None:
        plane.endpoints.clear()

        assert run("list", "--json").json == {"endpoints": []}
        assert run("list").code == 0

    def test_a_list_that_leads_in_a_circle_is_an_error_and_not_for_ever(self, run: Any, plane: Listing) -> None:
        plane.answers["/endpoints"] = {"endpoints": [], "nextPageToken": "again"}

        done = run("list", "--json")

        assert (done.code, done.error["type"], done.error["field"]) == (1, "ProtocolError", "nextPageToken")
        assert len(plane.asked) == 2


class TestShow:
    def test_all_pins_are_told_in_full(self, run: Any) -> None:
        out = run("show", "chest").out

        for pin in (REVISION, SNAPSHOT, IMAGE, LOCK, "google/medgemma-4b-it", f"{PARENT}/models/mg@2"):
            assert pin in out
        for setting in ("team=chest", "g2-standard-24, 2 × NVIDIA_L4", "80 % of the requests"):
            assert setting in out
        assert "!" not in out

    @pytest.mark.parametrize("name", ["chest", f"{PARENT}/endpoints/chest"])
    def test_an_id_or_a_resource_name_names_it(self, run: Any, name: str) -> None:
        assert run("show", name, "--json").json["endpoint"]["id"] == "chest"

    def test_pins_that_nobody_says_are_warned_of(self, run: Any, plane: Listing) -> None:
        plane.versions[1] |= {"labels": {}, "containerSpec": {"imageUri": "registry.example/serving:latest"}}
        plane.endpoints[0]["deployedModels"][0]["displayName"] = "reader"

        found = only(run)

        assert [each.partition(":")[0] for each in found["warnings"]] == [
            "revision", "snapshot sha256", "image digest", "lock",
        ]  # fmt: skip
        assert set(found["pins"].values()) == {None, "chest reader"}
        assert "  ! image digest: the image has a tag" in run("show", "chest").out

    def test_the_display_names_token_is_the_lock_where_the_model_says_none(self, run: Any, plane: Listing) -> None:
        del plane.versions[1]["labels"]["medport-lock"]

        found = only(run)

        assert found["pins"]["lock_id"] == LOCK
        assert found["warnings"] == []

    def test_two_locks_are_a_disagreement_that_names_both_sources(self, run: Any, plane: Listing) -> None:
        plane.versions[1]["labels"]["medport-lock"] = label(OTHER_LOCK)

        (said,) = only(run)["warnings"]

        assert said == f"lock: {LOCK[:12]}… by the display name, {OTHER_LOCK[:12]}… by the model version"

    @pytest.mark.parametrize(
        ("key", "id_", "counts"),
        [("medport-d-21", "skin", True), ("medport-lock", "skin", True), ("medport-lock", "chest", False)],
    )
    def test_an_endpoints_label_counts_where_it_is_about_one_model(
        self, run: Any, plane: Listing, key: str, id_: str, counts: bool
    ) -> None:
        for each in plane.endpoints:
            each["labels"][key] = label(OTHER_LOCK)

        assert bool(only(run, id_)["warnings"]) is counts

    @pytest.mark.parametrize("pin", ["medport-rev", "medport-snap", "medport-image"])
    def test_a_label_that_was_changed_alone_is_noticed(self, run: Any, plane: Listing, pin: str) -> None:
        plane.versions[1]["labels"][pin] = OTHER_REVISION if pin == "medport-rev" else label("34" * 32)

        (said,) = only(run)["warnings"]

        assert "by its labels" in said

    def test_another_version_than_asked_for_is_noticed(self, run: Any, plane: Listing) -> None:
        plane.answers["/models/mg@2"] = version("mg", "9")

        assert only(run)["warnings"] == ["version 2 was asked for, 9 answered"]

    @pytest.mark.parametrize(("status", "shown"), [
        ({"availableReplicaCount": 1}, "available"),
        ({"message": "Scaled to zero; a request wakes it."}, "Scaled to zero; a request wakes it."),
        ({"availableReplicaCount": 0}, "none is available"),
        ({}, "-"),
    ])  # fmt: skip
    def test_the_status_is_the_servers_message_or_its_count(
        self, run: Any, plane: Listing, status: dict[str, Any], shown: str
    ) -> None:
        plane.endpoints[2]["deployedModels"][0]["status"] = status

        (line,) = [each for each in run("show", "skin").out.splitlines() if each.split()[:1] == ["status"]]

        assert line.split(maxsplit=1)[1] == shown

    def test_control_characters_of_a_server_do_not_reach_the_terminal(self, run: Any, plane: Listing) -> None:
        plane.endpoints[0]["displayName"] = "\x1b]0;gone\x07"

        for command in (("show", "chest"), ("list",)):
            assert "\x1b" not in run(*command).out
            assert "\x07" not in run(*command).out


class TestRights:
    @pytest.mark.parametrize("status", [403, 404])
    def test_who_may_not_read_models_sees_the_rest_and_that_it_may_not(
        self, run: Any, plane: Listing, status: int
    ) -> None:
        plane.refused["/models/mg@2"] = [(status, "permission denied")]

        first, second = run("list", "--json").json["endpoints"][0]["deployed_models"]

        assert first["model_readable"] is False
        assert "aiplatform.models.get" in first["warnings"][0]
        assert first["pins"]["lock_id"] == LOCK
        assert second["pins"]["revision"] == REVISION
        assert [line.split()[-3:] for line in run("list").out.splitlines() if "mg@2" in line] == [
            ["?", "?", LOCK[:12]]
        ]

    def test_who_may_not_read_endpoints_is_told_so(self, run: Any, plane: Listing) -> None:
        plane.refused["/endpoints"] = [(403, "permission denied")]

        done = run("list", "--json")

        assert (done.code, done.error["type"]) == (1, "AuthError")
        assert done.error["remedy"]

    def test_the_key_is_sent_and_never_printed(
        self, run: Any, plane: Listing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MEDPORT_API_KEY", KEY)

        printed = [run(*each) for each in (("list",), ("list", "--json"), ("show", "chest"), ("show", "nothing"))]

        assert plane.keys == {f"Bearer {KEY}"}
        assert not any(KEY in each.out + each.err for each in printed)


class TestFaults:
    def test_what_is_not_there_is_not_found(self, run: Any) -> None:
        done = run("show", "nothing", "--json")

        assert (done.code, done.error["type"], done.error["backend"]) == (1, "NotFound", "local")

    def test_a_fault_that_passes_is_tried_again(self, run: Any, plane: Listing) -> None:
        plane.refused["/endpoints/chest"] = [(503, "later"), (500, "later"), (200, "")]

        assert run("show", "chest", "--json").code == 0
        assert plane.paths().count("/v1/projects/-/locations/-/endpoints/chest") == 3

    @pytest.mark.parametrize(
        "body", [b"<html>", [], {"endpoints": 3}, {"endpoints": [{"displayName": "no name"}]}]
    )
    def test_an_answer_that_cannot_be_read_is_a_protocol_error(self, run: Any, plane: Listing, body: Any) -> None:
        plane.answers["/endpoints"] = body

        done = run("list", "--json")

        assert (done.code, done.error["type"]) == (1, "ProtocolError")

    @pytest.mark.parametrize(
        "name",
        ["", "a b", "../models/mg", "chest?x=1", "chest#", "a/b", f"{PARENT}/models/mg", "/endpoints/chest",
         "projects/p/locations/l/endpoints/", "projects/../locations/l/endpoints/chest", "chest@1", "%2e%2e"],
    )  # fmt: skip
    def test_what_is_no_name_is_refused_before_anything_is_sent(self, run: Any, plane: Listing, name: str) -> None:
        done = run("show", name, "--json")

        assert (done.code, done.error["type"], done.error["field"]) == (1, "InputError", "name")
        assert plane.asked == []

    @pytest.mark.parametrize("given", [("list", "--limit", "0"), ("show",), ("list", "name")])
    def test_wrong_usage_has_its_exit_code(self, run: Any, given: tuple[str, ...]) -> None:
        assert run(*given).code == 64


class TestVertex:
    @pytest.fixture
    def vertex(
        self, authority: Authority, account: Account, loop_thread: LoopThread, tmp_path: Path
    ) -> Iterator[Vertex]:
        with Vertex(authority, tmp_path, account).serving(loop_thread) as server:
            settings = server.settings()
            (tmp_path / "medport.toml").write_text(
                f"""
                default_profile = "cloud"
                [profiles.cloud]
                backend = "vertex"
                project = "{settings["project"]}"
                location = "{settings["location"]}"
                medgemma = {{ endpoint = "1001" }}
                api_endpoint = "{settings["api_endpoint"]}"
                ca_file = "{settings["ca_file"]}"
                auth = {{ credentials_file = "{settings["auth"]["credentials_file"]}" }}
                [policy]
                allowed_locations = ["{settings["location"]}"]
                """
            )
            yield server

    def test_an_endpoint_of_vertex_is_shown_with_its_pins(self, medport: Any, vertex: Vertex) -> None:
        done = medport("endpoints", "show", "1001", "--json")

        (found,) = done.json["endpoint"]["deployed_models"]
        assert done.code == 0
        assert found["pins"]["revision"] == REVISION
        assert found["pins"]["image_digest"] == "cd" * 32
        assert found["warnings"] == []

    def test_the_list_is_that_of_the_profiles_project_and_location(self, medport: Any, vertex: Vertex) -> None:
        vertex.lookups.append(reply({"endpoints": [{"name": f"{VERTEX_PARENT}/endpoints/1001"}]}))

        found = medport("endpoints", "list", "--json").json["endpoints"]

        assert [each["id"] for each in found] == ["1001"]
        assert [each.path for each in vertex.asked("/endpoints")] == [
            f"/v1/projects/radiology-test/locations/{LOCATION}/endpoints"
        ]

    def test_a_token_that_was_revoked_is_fetched_again(self, medport: Any, vertex: Vertex) -> None:
        vertex.lookups.append(reply({"error": {"code": 401, "message": "expired"}}, 401))

        assert medport("endpoints", "show", "1001", "--json").code == 0
        assert len(vertex.asked("/token")) == 2

    def test_a_name_in_a_forbidden_location_is_refused_before_anything_is_sent(
        self, medport: Any, vertex: Vertex
    ) -> None:
        done = medport("endpoints", "show", "projects/p/locations/us-central1/endpoints/1", "--json")

        assert (done.code, done.error["type"]) == (1, "PolicyError")
        assert vertex.seen == []

    def test_a_policy_without_the_cloud_lets_nothing_out(
        self, medport: Any, vertex: Vertex, tmp_path: Path
    ) -> None:
        file = tmp_path / "medport.toml"
        file.write_text(file.read_text() + "allow_cloud = false\n")

        for command in (("list",), ("show", "1001")):
            done = medport("endpoints", *command, "--json")
            assert (done.code, done.error["type"]) == (1, "PolicyError")
        assert vertex.seen == []

    def test_an_endpoint_that_answers_from_another_location_is_refused(self, medport: Any, vertex: Vertex) -> None:
        vertex.answers_as = "projects/1/locations/us-central1/endpoints/"

        done = medport("endpoints", "show", "1001", "--json")

        assert (done.code, done.error["type"]) == (1, "PolicyError")

    def test_no_token_is_printed(self, medport: Any, vertex: Vertex) -> None:
        done = medport("endpoints", "show", "1001")

        assert vertex.tokens
        assert "ya29" not in done.out + done.err
