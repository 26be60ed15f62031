"""`vertexai.model_garden`: what can be deployed, its terms, and deployment by a publisher's name."""

from __future__ import annotations

import pytest
from google.api_core import exceptions
from google.cloud import aiplatform
from support.client_calls import call
from support.wire import text
from vertexai import model_garden
from vertexai.preview import model_garden as preview

from .conftest import MACHINE, Site, close

PHANTOM = "medport/medgemma-phantom"


@call("model_garden.list_deployable_models(model_filter=)")
def test_published_models_are_listed() -> None:
    found = model_garden.list_deployable_models(model_filter="medgemma")

    assert "google/medgemma@medgemma-4b-it" in found
    assert not any("medsiglip" in each for each in found)


@call("OpenModel.list_deploy_options()")
def test_options_name_a_machine() -> None:
    options = model_garden.OpenModel("google/medgemma@medgemma-4b-it").list_deploy_options()

    assert {each.dedicated_resources.machine_spec.accelerator_type.name for each in options} >= {"NVIDIA_L4"}


@call("OpenModel.list_deploy_options(concise=True, accelerator_type_filter=)")
def test_options_are_written_out() -> None:
    model = model_garden.OpenModel("google/medgemma@medgemma-4b-it")

    written = model.list_deploy_options(concise=True, accelerator_type_filter="L4")

    assert 'machine_type="g2-standard-24"' in written


@call("OpenModel.check_license_agreement_status() and .accept_model_license_agreement()")
def test_terms_are_accepted_once() -> None:
    model = model_garden.OpenModel("google/medsiglip@medsiglip-448")

    before = model.check_license_agreement_status()
    accepted = model.accept_model_license_agreement()

    assert before is False
    assert accepted.publisher_model_eula_acked
    assert model.check_license_agreement_status() is True


@call("OpenModel.deploy() of what is in the server's store")
def test_model_is_deployed_by_its_publishers_name(site: Site) -> None:
    made = model_garden.OpenModel(PHANTOM).deploy(
        accept_eula=True, endpoint_display_name="garden", model_display_name="garden model", **MACHINE
    )

    answer = made.predict(instances=[text("Describe this X-ray.", max_tokens=2)])
    (deployed,) = made.list_models()
    uploaded = aiplatform.Model(deployed.model)

    assert made.resource_name.startswith(f"{site.parent}/endpoints/")
    assert (made.display_name, uploaded.display_name) == ("garden", "garden model")
    assert made.dedicated_endpoint_enabled
    assert answer.deployed_model_id == deployed.id
    close(made)


@call("OpenModel.deploy(dedicated_endpoint_disabled=True)")
def test_endpoint_is_shared_if_that_is_asked_for() -> None:
    made = model_garden.OpenModel(PHANTOM).deploy(accept_eula=True, dedicated_endpoint_disabled=True, **MACHINE)

    assert not made.dedicated_endpoint_enabled
    close(made)


@call("OpenModel('org/model').list_deploy_options() of a Hugging Face id")
def test_options_of_a_hugging_face_id() -> None:
    assert model_garden.OpenModel("google/medgemma-4b-it").list_deploy_options()


# --- refused


@call("OpenModel.deploy() of a model whose terms are not accepted", "refused", "400 FAILED_PRECONDITION")
def test_terms_come_first() -> None:
    with pytest.raises(exceptions.BadRequest, match=r"(?i)accept"):
        model_garden.OpenModel("google/medgemma@medgemma-27b-text-it").deploy(**MACHINE)


@call("OpenModel.deploy() of what is not in the server's store", "refused", "operation.error 9; nothing stays")
def test_model_that_is_not_here_is_not_deployed() -> None:
    before = {each.resource_name for each in aiplatform.Endpoint.list()}

    with pytest.raises(exceptions.GoogleAPICallError, match="medgemma-27b-it"):
        model_garden.OpenModel("google/medgemma@medgemma-27b-it").deploy(accept_eula=True, **MACHINE)

    assert {each.resource_name for each in aiplatform.Endpoint.list()} == before


@call("OpenModel.list_deploy_options() of a model that nobody published", "refused", "404 NOT_FOUND")
def test_unknown_model_is_not_found() -> None:
    with pytest.raises(exceptions.NotFound):
        model_garden.OpenModel("google/nobody@nothing").list_deploy_options()


@call("CustomModel('gs://…').deploy()", "refused", "weights come from the store or a directory")
def test_weights_in_a_bucket_are_refused_with_a_remedy() -> None:
    with pytest.raises(exceptions.GoogleAPICallError, match="medport"):
        preview.CustomModel(gcs_uri="gs://control-plane/weights").deploy(
            machine_type="g2-standard-24", accelerator_type="NVIDIA_L4", accelerator_count=2
        )


@call("CustomModel('gs://…').list_deploy_options()")
def test_machines_for_a_model_of_ones_own() -> None:
    written = preview.CustomModel(gcs_uri="gs://control-plane/weights").list_deploy_options(
        filter_by_user_quota=False
    )

    assert "machine_type" in written


@call("OpenModel.export()", "501", "weights are fetched by medport snapshot pull")
def test_export_is_not_offered() -> None:
    with pytest.raises(exceptions.MethodNotImplemented, match="medport snapshot pull"):
        model_garden.OpenModel("google/medgemma@medgemma-4b-it").export("gs://control-plane/out")


@call("PartnerModel.deploy()", "refused", "400: only what this server can run")
def test_partner_models_are_not_here() -> None:
    with pytest.raises(exceptions.GoogleAPICallError):
        model_garden.PartnerModel("partner/model").deploy()
