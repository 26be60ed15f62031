"""`aiplatform.Model`, its versions and aliases, and the model registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import aiplatform
from google.cloud.aiplatform.models import ModelRegistry
from support.announced import announced
from support.client_calls import call

from .conftest import IMAGE, Site, fresh, opened, upload


@pytest.fixture
def registry(model: aiplatform.Model) -> ModelRegistry:
    return model.versioning_registry


@call("Model.upload(serving_container_…=, labels=, version_description=)")
def test_first_version_is_the_default(site: Site) -> None:
    model = upload(
        display_name="Reader",
        model_id=fresh("first"),
        description="reads",
        labels={"medport-rev": "f" * 40},
        version_description="as delivered",
        serving_container_deployment_timeout=1800,
        serving_container_shared_memory_size_mb=16384,
        serving_container_ports=[8080],
        serving_container_startup_probe_exec=["true"],
        serving_container_startup_probe_period_seconds=10,
    )

    assert model.resource_name.startswith(f"{site.parent}/models/first-")
    assert (model.version_id, list(model.version_aliases)) == ("1", ["default"])
    assert (model.display_name, model.description, model.version_description) == (
        "Reader",
        "reads",
        "as delivered",
    )
    assert model.labels == {"medport-rev": "f" * 40}
    spec = model.container_spec
    assert spec.image_uri == IMAGE
    assert spec.env[0].name == "MEDPORT_SNAPSHOT_SHA256"
    assert (spec.predict_route, spec.health_route, spec.ports[0].container_port) == ("/predict", "/health", 8080)
    assert (spec.deployment_timeout.seconds, spec.shared_memory_size_mb) == (1800, 16384)
    assert (list(spec.startup_probe.exec_.command), spec.startup_probe.period_seconds) == (["true"], 10)


@call("Model.upload() with an id that the service chooses")
def test_id_that_the_service_chooses_is_a_number() -> None:
    model = upload()

    assert model.name.isdecimal()


@call("Model.upload(model_garden_source_model_name=)")
def test_source_in_model_garden_is_kept() -> None:
    model = upload(
        model_garden_source_model_name="publishers/google/models/medgemma",
        model_garden_source_model_version_id="medgemma-4b-it",
    )

    source = model.gca_resource.base_model_source.model_garden_source
    assert source.public_model_name == "publishers/google/models/medgemma"
    assert source.version_id == "medgemma-4b-it"


@call("Model.upload(parent_model=, is_default_version=False, version_aliases=)")
def test_second_version_leaves_the_default_where_it_is(model: aiplatform.Model) -> None:
    second = aiplatform.Model(f"{model.resource_name}@candidate")

    assert (second.version_id, list(second.version_aliases)) == ("2", ["candidate"])
    assert model.version_id == "1"


@call("Model.upload(parent_model=, is_default_version=True)")
def test_new_default_takes_the_alias_from_the_old_one() -> None:
    first = upload()

    second = upload(parent_model=first.resource_name)

    assert (second.version_id, list(second.version_aliases)) == ("2", ["default"])
    assert not aiplatform.Model(first.resource_name, version="1").version_aliases
    assert aiplatform.Model(first.resource_name).version_id == "2"


@call("Model(name, version=) and Model('name@alias')")
@pytest.mark.parametrize(
    ("suffix", "version", "found"),
    [("", None, "1"), ("", "2", "2"), ("@2", None, "2"), ("@default", None, "1"), ("", "candidate", "2")],
)
def test_version_is_found_by_number_and_by_alias(
    model: aiplatform.Model, suffix: str, version: str | None, found: str
) -> None:
    assert aiplatform.Model(model.resource_name + suffix, version=version).version_id == found


@call("Model.list(filter=)")
@pytest.mark.parametrize(
    "wanted",
    ['labels.site="{site}"', "labels.site={site} AND display_name={name}", 'display_name="{name}"'],
)
def test_list_keeps_to_its_filter(wanted: str) -> None:
    site, name = fresh("site"), fresh("listed")
    model = upload(labels={"site": site}, display_name=name)

    found = aiplatform.Model.list(filter=wanted.format(site=site, name=name))

    assert [each.resource_name for each in found] == [model.resource_name]


@call("Model.list(order_by=)")
def test_list_keeps_to_its_order() -> None:
    label = fresh("ordered")
    names = [f"{label}-{each}" for each in ("b", "c", "a")]
    for name in names:
        upload(display_name=name, labels={"set": label})

    ordered = {
        by: [each.display_name for each in aiplatform.Model.list(filter=f"labels.set={label}", order_by=by)]
        for by in ("display_name", "create_time desc")
    }

    assert ordered == {"display_name": sorted(names), "create_time desc": names[::-1]}


@call("Model.list() over more models than a page holds")
def test_list_follows_the_pages(site: Site) -> None:
    from google.cloud import aiplatform_v1 as v1
    from google.oauth2.credentials import Credentials

    label = fresh("paged")
    names = {upload(labels={"set": label}).resource_name for _ in range(3)}
    client = v1.ModelServiceClient(
        transport="rest", client_options=site.options, credentials=Credentials(site.key)
    )

    pages = list(
        client.list_models({"parent": site.parent, "filter": f"labels.set={label}", "page_size": 2}).pages
    )

    assert [len(page.models) for page in pages] == [2, 1]
    assert {each.name for page in pages for each in page.models} == names


@call("Model.update(display_name=, description=, labels=)")
def test_update_changes_what_it_names_and_nothing_else() -> None:
    model = upload(labels={"a": "1"}, description="before")
    stamp = model.update_time

    model.update(display_name="Other", labels={"b": "2"})

    assert (model.display_name, model.labels, model.description) == ("Other", {"b": "2"}, "before")
    assert model.container_spec.image_uri == IMAGE
    assert model.update_time > stamp


@call("ModelRegistry.list_versions()")
def test_registry_lists_the_versions(registry: ModelRegistry) -> None:
    found = {each.version_id: list(each.version_aliases or ()) for each in registry.list_versions()}

    assert found == {"1": ["default"], "2": ["candidate"]}


@call("ModelRegistry.get_version_info() and .get_model()")
def test_registry_tells_of_a_version(registry: ModelRegistry, model: aiplatform.Model) -> None:
    info = registry.get_version_info("2")

    assert (info.version_id, info.model_resource_name) == ("2", model.resource_name)
    assert info.version_create_time is not None
    assert registry.get_model("candidate").version_id == "2"


@call("ModelRegistry.add_version_aliases() and .remove_version_aliases()")
def test_aliases_come_and_go() -> None:
    first = upload()
    upload(parent_model=first.resource_name, is_default_version=False)
    registry = first.versioning_registry

    registry.add_version_aliases(["blue"], "2")
    with_blue = list(registry.get_version_info("2").version_aliases or ())
    registry.remove_version_aliases(["blue"], "2")

    assert with_blue == ["blue"]
    assert not registry.get_version_info("2").version_aliases


@call("ModelRegistry.add_version_aliases(['default'])")
def test_default_moves_by_its_alias() -> None:
    first = upload()
    upload(parent_model=first.resource_name, is_default_version=False)

    first.versioning_registry.add_version_aliases(["default"], "2")

    assert aiplatform.Model(first.resource_name).version_id == "2"


@call("ModelRegistry.update_version(version_description=, labels=)")
def test_update_of_a_version() -> None:
    first = upload()
    upload(parent_model=first.resource_name, is_default_version=False)

    first.versioning_registry.update_version("2", version_description="second reading", labels={"v": "2"})

    second = aiplatform.Model(first.resource_name, version="2")
    assert (second.version_description, second.labels) == ("second reading", {"v": "2"})


@call("ModelRegistry.delete_version()")
def test_version_that_is_deleted_is_gone_and_its_number_is_not_given_again() -> None:
    first = upload()
    upload(parent_model=first.resource_name, is_default_version=False)

    first.versioning_registry.delete_version("2")
    third = upload(parent_model=first.resource_name, is_default_version=False)

    assert [each.version_id for each in first.versioning_registry.list_versions()] == ["1", "3"]
    assert third.version_id == "3"


@call("Model.delete()")
def test_model_that_is_deleted_is_not_found() -> None:
    model = upload()

    model.delete()

    with pytest.raises(exceptions.NotFound):
        aiplatform.Model(model.resource_name)


# --- refused


@call("Model.upload(model_id=) of an id that is used", "refused", "409 ALREADY_EXISTS")
def test_used_model_id_is_a_conflict(model: aiplatform.Model) -> None:
    with pytest.raises(exceptions.Conflict, match="already exists"):
        upload(model_id=model.name)


@call("Model.upload(parent_model=) of a model that is not there", "refused", "404 NOT_FOUND")
def test_parent_that_is_not_there_is_not_found(site: Site) -> None:
    with pytest.raises(exceptions.NotFound):
        upload(parent_model=f"{site.parent}/models/nobody")


@call("Model.upload() of an id, an alias or labels that break the rules", "refused", "400 INVALID_ARGUMENT")
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"model_id": "Upper"}, "model_id"),
        ({"model_id": "1st"}, "model_id"),
        ({"model_id": "a" * 64}, "model_id"),
        ({"version_aliases": ["1"]}, "alias"),
        ({"version_aliases": ["Blue!"]}, "alias"),
        ({"labels": {"note": "a" * 70}}, "label"),
        ({"labels": {"Note": "x"}}, "label"),
        ({"labels": {"note": "with spaces"}}, "label"),
        ({"labels": {f"k{each}": "v" for each in range(65)}}, "label"),
    ],
)
def test_rule_that_is_broken_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(exceptions.BadRequest, match=field):
        upload(**options)


@call(
    "Model.upload(serving_container_predict_route=, serving_container_invoke_route_prefix=)",
    "refused",
    "400: one of them",
)
def test_version_serves_one_kind_of_route() -> None:
    with pytest.raises(exceptions.BadRequest, match=r"invoke_?[rR]oute"):
        upload(serving_container_invoke_route_prefix="/*")


@call("Model(version=) that is not there", "refused", "404 NOT_FOUND")
def test_version_that_is_not_there_is_not_found(model: aiplatform.Model) -> None:
    with pytest.raises(exceptions.NotFound):
        aiplatform.Model(model.resource_name, version="9")


@call("ModelRegistry.delete_version() of the default", "refused", "400 FAILED_PRECONDITION")
def test_default_version_is_not_deleted_while_there_are_others() -> None:
    first = upload()
    upload(parent_model=first.resource_name, is_default_version=False)

    with pytest.raises(exceptions.BadRequest, match="default"):
        first.versioning_registry.delete_version("1")


@call("ModelRegistry.remove_version_aliases(['default'])", "refused", "400: exactly one version is the default")
def test_default_alias_is_not_taken_away(registry: ModelRegistry) -> None:
    with pytest.raises(exceptions.BadRequest, match="default"):
        registry.remove_version_aliases(["default"], "1")


@call("Model.list(filter=) that is not understood", "refused", "400 INVALID_ARGUMENT")
def test_filter_that_is_not_known_is_refused_and_not_ignored() -> None:
    with pytest.raises(exceptions.BadRequest, match="filter"):
        aiplatform.Model.list(filter="ward ~ 7")


@call("Model.upload(serving_container_image_uri=) without a digest, where digests are asked for", "refused", "400")
def test_image_without_a_digest_is_refused_where_digests_are_asked_for(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--control-plane", str(tmp_path / "state"), "--require-digest", "--api-key-env", "KEY"]
    options += ["--tls-self-signed", str(tmp_path / "tls"), "--project", site.project, "--location", site.location]

    with announced(*options, env={"KEY": site.key}) as facts:
        strict = opened(facts)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", strict.ca_file)
        aiplatform.init(api_endpoint=strict.url)
        pinned = upload()
        with pytest.raises(exceptions.BadRequest, match="digest"):
            upload(serving_container_image_uri="medport/server:latest")

    assert pinned.version_id == "1"


# --- not offered


@call("Model.export_model()", "no", "the client asks only models that say they can be exported; these do not")
def test_export_is_refused_by_the_client_itself(model: aiplatform.Model) -> None:
    with pytest.raises(ValueError, match="not exportable"):
        model.export_model("custom-trained", artifact_destination="gs://control-plane/out")


@call("Model.copy()", "501", "upload it again")
def test_copy_is_not_offered(model: aiplatform.Model) -> None:
    with pytest.raises(exceptions.MethodNotImplemented, match="upload it again"):
        model.copy(destination_location="europe-west4")


@call("Model.list_model_evaluations() and .get_model_evaluation()", "501", "evaluations are kept outside")
def test_evaluations_are_not_offered(model: aiplatform.Model) -> None:
    with pytest.raises(exceptions.MethodNotImplemented, match="evaluations"):
        model.list_model_evaluations()
    with pytest.raises(exceptions.MethodNotImplemented, match="evaluations"):
        model.get_model_evaluation()
