"""Models on the control plane: uploaded, versioned, named by aliases, changed, listed, deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.resource_calls import DIGEST, PARENT, PROJECT, Calls, model

from medport.errors import AlreadyExists, Conflict, Forbidden, InputError, NotFound, PreconditionFailed
from medport_local.control.models import upload, version_shown

Json = dict[str, Any]


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Calls]:
    opened = Calls(tmp_path / "plane")
    yield opened
    opened.close()


def versions_of(calls: Calls, id_: str = "chest") -> dict[str, list[str]]:
    """Aliases by version."""
    found = calls.call("GET", f"/models/{id_}:listVersions")["models"]
    return {each["versionId"]: each["versionAliases"] for each in found}


def test_an_upload_is_answered_done_with_its_name_and_version(calls: Calls) -> None:
    answered = calls.call("POST", "/models:upload", {"model": model(), "modelId": "chest"}, api="v1beta1")

    package = "type.googleapis.com/google.cloud.aiplatform.v1beta1"
    assert answered["done"] is True
    assert answered["name"].startswith(f"{PARENT}/models/chest/operations/")
    assert answered["metadata"]["@type"] == f"{package}.UploadModelOperationMetadata"
    assert answered["response"] == {
        "@type": f"{package}.UploadModelResponse",
        "model": f"{PARENT}/models/chest",
        "modelVersionId": "1",
    }


def test_a_model_without_an_id_gets_one_of_nineteen_digits(calls: Calls) -> None:
    name = calls.upload({"model": model()})["model"]

    id_ = name.removeprefix(f"{PARENT}/models/")
    assert id_.isdigit()
    assert len(id_) == 19


def test_what_was_uploaded_is_shown_whole_in_camel_case(calls: Calls) -> None:
    spec = {
        "image_uri": "registry/serving" + DIGEST,
        "command": ["serve"],
        "args": ["--revision=abc"],
        "env": [{"name": "MEDPORT_REVISION", "value": "abc"}, {"name": "EMPTY"}],
        "ports": [{"containerPort": 8080}],
        "grpc_ports": [{"container_port": 9000}],
        "predictRoute": "/predict",
        "healthRoute": "/health",
        "deploymentTimeout": {"seconds": 7200},
        "sharedMemorySizeMb": 16384,
        "startupProbe": {"exec": {"command": ["true"]}, "period_seconds": 5},
        "healthProbe": {
            "httpGet": {"path": "/health", "port": 8080, "httpHeaders": [{"name": "a", "value": "b"}]}
        },
    }
    calls.upload({"model": {**model(), "containerSpec": spec, "artifactUri": "gs://b/d"}, "modelId": "chest"})

    shown = calls.call("GET", "/models/chest")

    assert shown["containerSpec"] == {
        "imageUri": "registry/serving" + DIGEST,
        "command": ["serve"],
        "args": ["--revision=abc"],
        "env": [{"name": "MEDPORT_REVISION", "value": "abc"}, {"name": "EMPTY"}],
        "ports": [{"containerPort": 8080}],
        "grpcPorts": [{"containerPort": 9000}],
        "predictRoute": "/predict",
        "healthRoute": "/health",
        "deploymentTimeout": "7200s",
        "sharedMemorySizeMb": "16384",
        "startupProbe": {"exec": {"command": ["true"]}, "periodSeconds": 5},
        "healthProbe": {
            "httpGet": {"path": "/health", "port": 8080, "httpHeaders": [{"name": "a", "value": "b"}]}
        },
    }
    assert shown["artifactUri"] == "gs://b/d"


def test_what_the_client_asks_of_a_model_before_it_deploys_is_there(calls: Calls) -> None:
    calls.upload({"model": model(), "modelId": "chest"})

    shown = calls.call("GET", "/models/chest@1")

    assert shown["name"] == f"{PARENT}/models/chest"
    assert (shown["versionId"], shown["versionAliases"]) == ("1", ["default"])
    assert shown["supportedDeploymentResourcesTypes"] == ["DEDICATED_RESOURCES"]
    assert shown["supportedInputStorageFormats"] == ["jsonl"]
    assert shown["versionCreateTime"].endswith("Z")


def test_versions_are_counted_and_default_moves_only_if_asked(calls: Calls) -> None:
    calls.upload({"model": model(versionAliases=["default", "blue"]), "modelId": "chest"})
    parent = {"parentModel": f"projects/{PROJECT.id}/locations/{PROJECT.location}/models/chest"}

    second = calls.upload({"model": model(versionAliases=["green"]), **parent})
    before = versions_of(calls)
    third = calls.upload({"model": model(versionAliases=["default", "blue"]), **parent})

    assert (second["modelVersionId"], third["modelVersionId"]) == ("2", "3")
    assert before == {"1": ["blue", "default"], "2": ["green"]}
    assert versions_of(calls) == {"1": [], "2": ["green"], "3": ["blue", "default"]}


def test_a_version_number_is_not_used_twice(calls: Calls) -> None:
    calls.upload({"model": model(), "modelId": "chest"})
    calls.upload({"model": model(), "parentModel": f"{PARENT}/models/chest"})
    calls.call("DELETE", "/models/chest@2:deleteVersion")

    again = calls.upload({"model": model(), "parentModel": f"{PARENT}/models/chest"})

    assert again["modelVersionId"] == "3"


def test_a_version_number_of_a_deleted_model_is_not_used_again(calls: Calls) -> None:
    calls.upload({"model": model(), "modelId": "chest"})
    calls.call("DELETE", "/models/chest")

    again = calls.upload({"model": model(), "modelId": "chest"})

    assert again["modelVersionId"] == "2"
    assert calls.call("GET", "/models/chest")["versionId"] == "2"


@pytest.mark.parametrize("named", ["chest", "chest@default", "chest@2", "chest@blue", "chest@-"])
def test_a_version_is_found_by_number_alias_or_nothing(calls: Calls, named: str) -> None:
    calls.upload({"model": model(), "modelId": "chest"})
    calls.upload({"model": model(versionAliases=["default", "blue"]), "parentModel": f"{PARENT}/models/chest"})

    assert calls.call("GET", f"/models/{named}")["versionId"] == "2"


@pytest.mark.parametrize("named", ["chest@7", "chest@green", "chest@01", "skull", "skull@1", "chest@1@1"])
def test_a_version_that_is_not_there_is_not_found(calls: Calls, named: str) -> None:
    calls.upload({"model": model(), "modelId": "chest"})

    with pytest.raises(NotFound):
        calls.call("GET", f"/models/{named}")


def test_a_used_id_is_refused_and_nothing_is_changed(calls: Calls) -> None:
    calls.upload({"model": model("first"), "modelId": "chest"})

    with pytest.raises(AlreadyExists, match="parentModel"):
        calls.upload({"model": model("second"), "modelId": "chest"})

    assert calls.call("GET", "/models/chest")["displayName"] == "first"
    assert len(versions_of(calls)) == 1


@pytest.mark.parametrize("id_", ["1chest", "-chest", "Chest", "a" * 64, "a.b", "a@1", "a/b", "1" * 18])
def test_an_id_that_vertex_does_not_take_is_refused(calls: Calls, id_: str) -> None:
    with pytest.raises(InputError, match="model_id"):
        calls.upload({"model": model(), "modelId": id_})


@pytest.mark.parametrize(
    ("parent", "error"),
    [
        (f"{PARENT}/models/skull", NotFound),
        (f"{PARENT}/models/chest@1", InputError),
        (f"{PARENT}/endpoints/chest", InputError),
        ("projects/other/locations/europe-west4/models/chest", Forbidden),
        ("projects/radiology/locations/us-east4/models/chest", NotFound),
    ],
)
def test_a_parent_that_is_no_model_here_is_refused(calls: Calls, parent: str, error: type[Exception]) -> None:
    calls.upload({"model": model(), "modelId": "chest"})

    with pytest.raises(error):
        calls.upload({"model": model(), "parentModel": parent})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"displayName": ""}, "model.display_name"),
        ({"displayName": "x" * 129}, "model.display_name"),
        ({"labels": {"Team": "a"}}, "Team"),
        ({"labels": {"team": "A b"}}, "team"),
        ({"labels": {"team": "a" * 64}}, "team"),
        ({"versionAliases": ["1blue"]}, "1blue"),
        ({"versionAliases": ["b"]}, "version_aliases"),
        ({"containerSpec": {"predictRoute": "/a"}}, "image_uri"),
        ({"containerSpec": {"imageUri": "i", "predictRoute": "/a", "invokeRoutePrefix": "/*"}}, "only one of"),
        ({"containerSpec": {"imageUri": "i", "invokeRoutePrefix": "/a"}}, "invoke_route_prefix"),
        ({"containerSpec": {"imageUri": "i", "healthRoute": "health"}}, "health_route"),
        ({"containerSpec": {"imageUri": "i", "env": [{"name": "A"}, {"name": "A"}]}}, r"env\[1\]"),
        ({"containerSpec": {"imageUri": "i", "env": [{"name": "A-B"}]}}, r"env\[0\]"),
        ({"containerSpec": {"imageUri": "i", "ports": [{"containerPort": 70000}]}}, "container_port"),
        ({"containerSpec": {"imageUri": "i", "deploymentTimeout": "7201s"}}, "deployment_timeout"),
        ({"containerSpec": {"imageUri": "i", "healthProbe": {"exec": {}, "grpc": {}}}}, "health_probe"),
        (
            {"containerSpec": {"imageUri": "i", "replicas": 2}},
            "Unknown name \"replicas\" at 'model.container_spec'",
        ),
    ],
)
def test_what_breaks_a_rule_is_refused_by_its_name(calls: Calls, change: Json, said: str) -> None:
    with pytest.raises(InputError, match=said):
        calls.upload({"model": {**model(), **change}, "modelId": "chest"})

    assert calls.call("GET", "/models") == {}


def test_an_image_without_a_digest_is_refused_where_the_policy_says_so(tmp_path: Path) -> None:
    strict = Calls(tmp_path / "strict", require_digest=True)
    tagged = model(containerSpec={"imageUri": "registry/serving:latest"})

    with pytest.raises(InputError, match=r"image_uri.*digest"):
        strict.upload({"model": tagged})
    with pytest.raises(InputError, match="image_uri"):
        strict.upload({"model": {"displayName": "x", "artifactUri": "gs://b/d"}})
    taken = strict.upload({"model": model()})
    strict.close()

    assert taken["modelVersionId"] == "1"


def test_aliases_are_given_taken_and_left(calls: Calls) -> None:
    calls.upload({"model": model(versionAliases=["blue", "gold"]), "modelId": "chest"})
    calls.upload({"model": model(), "parentModel": f"{PARENT}/models/chest"})

    shown = calls.call(
        "POST", "/models/chest@2:mergeVersionAliases", {"versionAliases": ["blue", "-gold", "both", "-both"]}
    )

    assert shown["versionAliases"] == ["blue"]
    assert versions_of(calls) == {"1": ["default", "gold"], "2": ["blue"]}


def test_an_alias_both_given_and_taken_is_left_where_it_is(calls: Calls) -> None:
    calls.upload({"model": model(versionAliases=["gold"]), "modelId": "chest"})

    shown = calls.call("POST", "/models/chest@1:mergeVersionAliases", {"versionAliases": ["gold", "-gold"]})

    assert shown["versionAliases"] == ["default", "gold"]


def test_default_moves_by_being_given_and_cannot_be_taken(calls: Calls) -> None:
    calls.upload({"model": model("one"), "modelId": "chest"})
    calls.upload({"model": model("two"), "parentModel": f"{PARENT}/models/chest"})

    with pytest.raises(InputError, match="default"):
        calls.call("POST", "/models/chest@1:mergeVersionAliases", {"versionAliases": ["-default"]})
    calls.call("POST", "/models/chest@2:mergeVersionAliases", {"versionAliases": ["default"]})

    assert versions_of(calls) == {"1": [], "2": ["default"]}
    assert calls.call("GET", '/models?filter=displayName="two"')["models"][0]["versionId"] == "2"
    assert calls.call("GET", '/models?filter=displayName="one"') == {}


def test_a_version_must_be_named_for_its_aliases(calls: Calls) -> None:
    calls.upload({"model": model(), "modelId": "chest"})

    with pytest.raises(InputError, match="MODEL@VERSION"):
        calls.call("POST", "/models/chest:mergeVersionAliases", {"versionAliases": ["blue"]})


def test_the_whole_model_sent_back_changes_only_what_the_mask_names(calls: Calls) -> None:
    calls.upload({"model": model(description="kept", labels={"a": "1"}), "modelId": "chest"})
    seen = calls.call("GET", "/models/chest")

    body = {**seen, "labels": {"b": "2"}, "description": "other", "displayName": "other"}
    shown = calls.call("PATCH", "/models/chest?updateMask=labels", body)

    assert shown["labels"] == {"b": "2"}
    assert (shown["description"], shown["displayName"]) == ("kept", "chest")
    assert shown["containerSpec"] == seen["containerSpec"]
    assert calls.call("GET", "/models/chest") == shown


def test_labels_of_a_model_are_those_of_all_versions_and_a_versions_own_win(calls: Calls) -> None:
    calls.upload({"model": model(labels={"snap": "one"}), "modelId": "chest"})
    calls.upload({"model": model(labels={"snap": "two"}), "parentModel": f"{PARENT}/models/chest"})

    calls.call("PATCH", "/models/chest?updateMask=labels", {"labels": {"snap": "one", "team": "a"}})
    calls.call("PATCH", "/models/chest@2?updateMask=labels", {"labels": {"snap": "two", "team": "b"}})

    assert calls.call("GET", "/models/chest@1")["labels"] == {"snap": "one", "team": "a"}
    assert calls.call("GET", "/models/chest@2")["labels"] == {"snap": "two", "team": "b"}


def test_a_version_read_by_number_is_changed_without_its_number_in_the_path(calls: Calls) -> None:
    calls.upload({"model": model(), "modelId": "chest"})
    calls.upload({"model": model(), "parentModel": f"{PARENT}/models/chest"})
    seen = calls.call("GET", "/models/chest@2")

    changed = calls.call(
        "PATCH", "/models/chest?updateMask=version_description", {**seen, "versionDescription": "sharper"}
    )

    assert changed["versionId"] == "2"
    assert calls.call("GET", "/models/chest@2")["versionDescription"] == "sharper"
    assert "versionDescription" not in calls.call("GET", "/models/chest@1")


def test_display_name_and_description_are_of_all_versions(calls: Calls) -> None:
    calls.upload({"model": model("one", description="d"), "modelId": "chest"})
    calls.upload({"model": model("two"), "parentModel": f"{PARENT}/models/chest"})

    calls.call("PATCH", "/models/chest?updateMask=display_name,description", {"displayName": "both"})

    for number in ("1", "2"):
        shown = calls.call("GET", f"/models/chest@{number}")
        assert shown["displayName"] == "both"
        assert "description" not in shown


def test_a_star_changes_all_that_can_be_changed(calls: Calls) -> None:
    calls.upload({"model": model(description="d", labels={"a": "1"}), "modelId": "chest"})

    shown = calls.call("PATCH", "/models/chest?updateMask=*", {"displayName": "other", "artifactUri": "gs://b/d"})

    assert shown["displayName"] == "other"
    assert shown.keys().isdisjoint({"description", "labels", "artifactUri"})


def test_a_new_model_is_as_old_as_its_first_version_and_a_change_makes_it_younger(calls: Calls) -> None:
    calls.upload({"model": model(), "modelId": "chest"})
    first = calls.call("GET", "/models/chest")

    changed = calls.call("PATCH", "/models/chest?updateMask=description", {"description": "d"})

    assert first["createTime"] == first["updateTime"] <= first["versionCreateTime"]
    assert changed["createTime"] == first["createTime"]
    assert changed["updateTime"] > first["updateTime"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/models/chest", "update_mask is required"),
        ("/models/chest?updateMask=containerSpec", "upload a new one"),
        ("/models/chest?updateMask=labels.team", "name labels"),
        ("/models/chest?updateMask=colour", "colour"),
        ("/models/chest?updateMask=versionAliases", ":mergeVersionAliases"),
        ("/models/chest?updateMask=displayName,versionDescription", "both"),
        ("/models/chest@1?updateMask=displayName", "display_name"),
    ],
)
def test_a_mask_that_this_call_cannot_serve_is_refused(calls: Calls, path: str, said: str) -> None:
    calls.upload({"model": model(), "modelId": "chest"})

    with pytest.raises(InputError, match=said):
        calls.call("PATCH", path, model("other"))

    assert calls.call("GET", "/models/chest")["displayName"] == "chest"


def test_a_stale_etag_is_a_conflict_and_none_is_not(calls: Calls) -> None:
    calls.upload({"model": model(), "modelId": "chest"})
    seen = calls.call("GET", "/models/chest")
    calls.call("PATCH", "/models/chest?updateMask=labels", {"labels": {"a": "1"}})

    with pytest.raises(Conflict, match="etag"):
        calls.call("PATCH", "/models/chest?updateMask=labels", {**seen, "labels": {"a": "2"}})
    blind = calls.call("PATCH", "/models/chest?updateMask=labels", {"labels": {"a": "3"}})

    assert blind["labels"] == {"a": "3"}


def test_a_deployed_model_shows_where_and_is_not_deleted(calls: Calls) -> None:
    calls.upload({"model": model(), "modelId": "chest"})
    calls.upload({"model": model(), "parentModel": f"{PARENT}/models/chest"})
    calls.deploy("ward", "7", "chest", version="2", state="PENDING")

    where = [{"endpoint": f"{PARENT}/endpoints/ward", "deployedModelId": "7"}]
    assert calls.call("GET", "/models/chest@2")["deployedModels"] == where
    assert "deployedModels" not in calls.call("GET", "/models/chest@1")
    with pytest.raises(PreconditionFailed, match="DeployedModel"):
        calls.call("DELETE", "/models/chest")
    with pytest.raises(PreconditionFailed, match="chest@2"):
        calls.call("DELETE", "/models/chest@2:deleteVersion")


def test_an_endpoint_that_a_caller_may_not_know_is_not_shown_with_a_model(calls: Calls) -> None:
    calls.upload({"model": model(), "modelId": "chest"})
    calls.deploy("ward", "7", "chest")
    calls.deploy("research", "8", "chest")

    shown = calls.call("GET", "/models/chest", may=lambda endpoint: endpoint == "ward")

    assert [each["deployedModelId"] for each in shown["deployedModels"]] == ["7"]


def test_a_deleted_model_takes_its_versions_and_aliases_along(calls: Calls) -> None:
    calls.upload({"model": model(versionAliases=["blue"]), "modelId": "chest"})
    calls.upload({"model": model(), "parentModel": f"{PARENT}/models/chest"})

    answered = calls.call("DELETE", "/models/chest")

    assert answered["response"] == {"@type": "type.googleapis.com/google.protobuf.Empty"}
    with calls.database.reading() as transaction:
        assert transaction.all("SELECT * FROM resource") == []
        assert transaction.all("SELECT * FROM alias") == []
    with pytest.raises(NotFound):
        calls.call("DELETE", "/models/chest")


def test_the_default_and_the_only_version_stay(calls: Calls) -> None:
    calls.upload({"model": model(), "modelId": "chest"})
    with pytest.raises(PreconditionFailed, match="only version"):
        calls.call("DELETE", "/models/chest@1:deleteVersion")
    calls.upload({"model": model(versionAliases=["blue"]), "parentModel": f"{PARENT}/models/chest"})

    with pytest.raises(PreconditionFailed, match="default"):
        calls.call("DELETE", "/models/chest@1:deleteVersion")
    calls.call("DELETE", "/models/chest@blue:deleteVersion")

    assert versions_of(calls) == {"1": ["default"]}


def test_a_version_is_not_deleted_by_the_call_for_models(calls: Calls) -> None:
    calls.upload({"model": model(), "modelId": "chest"})

    with pytest.raises(InputError, match=":deleteVersion"):
        calls.call("DELETE", "/models/chest@1")


def test_the_list_has_each_models_default_version_once(calls: Calls) -> None:
    for id_ in ("a", "b"):
        calls.upload({"model": model(labels={"site": id_}), "modelId": id_})
    second = model(labels={"site": "c"}, versionAliases=["default"])
    calls.upload({"model": second, "parentModel": f"{PARENT}/models/a"})

    found = calls.call("GET", "/models")["models"]

    assert [(each["name"].rpartition("/")[2], each["versionId"]) for each in found] == [("a", "2"), ("b", "1")]
    assert calls.call("GET", "/models?filter=labels.site=a") == {}
    assert len(calls.call("GET", "/models?filter=labels.site=c&orderBy=create_time desc")["models"]) == 1


def test_a_list_shows_each_model_as_a_get_does(calls: Calls) -> None:
    for id_ in ("a", "b", "c"):
        calls.upload({"model": model(labels={"site": id_}, versionAliases=["blue"]), "modelId": id_})
    calls.upload({"model": model(versionAliases=["default", "red"]), "parentModel": f"{PARENT}/models/b"})

    listed = calls.call("GET", "/models?orderBy=create_time")["models"]

    assert listed == [calls.call("GET", f"/models/{id_}") for id_ in ("a", "b", "c")]


@pytest.mark.parametrize(
    "wanted",
    [
        "model=a",
        "model!=b",
        f"name={PARENT}/models/a",
        "name=projects/radiology/locations/europe-west4/models/a",
        "baseModelName=medgemma",
        "base_model_name=publishers/google/models/medgemma@4b",
        'create_time>"2020-01-01T00:00:00Z" AND model=a',
    ],
)
def test_models_are_found_by_what_vertex_documents(calls: Calls, wanted: str) -> None:
    source = {"modelGardenSource": {"publicModelName": "publishers/google/models/medgemma@medgemma-4b-it"}}
    calls.upload({"model": model(baseModelSource=source), "modelId": "a"})
    calls.upload({"model": model(), "modelId": "b"})

    found = calls.call("GET", f"/models?filter={wanted}")["models"]

    assert [each["name"] for each in found] == [f"{PARENT}/models/a"]


def test_the_list_of_versions_names_each_with_its_number_and_knows_merged_labels(calls: Calls) -> None:
    calls.upload({"model": model(labels={"stage": "old"}), "modelId": "chest"})
    calls.upload({"model": model(labels={"stage": "new"}), "parentModel": f"{PARENT}/models/chest"})
    calls.call("PATCH", "/models/chest?updateMask=labels", {"labels": {"stage": "old", "team": "a"}})

    newest = calls.call("GET", "/models/chest:listVersions?orderBy=create_time desc&pageSize=1")
    found = calls.call("GET", "/models/chest:listVersions?filter=labels.team=a AND labels.stage=new")["models"]

    assert newest["models"][0]["name"] == f"{PARENT}/models/chest@2"
    assert newest["nextPageToken"]
    assert [each["versionId"] for each in found] == ["2"]


def test_a_read_mask_leaves_the_rest_out(calls: Calls) -> None:
    calls.upload({"model": model(labels={"a": "1", "b": "2"}), "modelId": "chest"})

    (shown,) = calls.call("GET", "/models?readMask=name,displayName,labels.a,container_spec.image_uri")["models"]

    assert shown == {
        "name": f"{PARENT}/models/chest",
        "displayName": "chest",
        "labels": {"a": "1"},
        "containerSpec": {"imageUri": "serving" + DIGEST},
    }


def test_another_part_can_upload_within_its_own_transaction(calls: Calls) -> None:
    with calls.database.writing() as transaction:
        done = upload(transaction, PROJECT, {"model": model(), "modelId": "garden"})
        shown = version_shown(transaction, done["model"], done["modelVersionId"])

    assert shown["displayName"] == "chest"
    assert calls.call("GET", "/models/garden")["versionId"] == "1"


def test_a_model_garden_model_needs_no_image_and_says_where_it_is_from(calls: Calls) -> None:
    source = {"modelGardenSource": {"publicModelName": "publishers/google/models/medsiglip"}}
    calls.upload({"model": {"displayName": "x", "baseModelSource": source, "containerSpec": {}}, "modelId": "g"})

    shown = calls.call("GET", "/models/g")

    assert shown["modelSourceInfo"] == {"sourceType": "MODEL_GARDEN"}
    assert shown["baseModelSource"] == source
