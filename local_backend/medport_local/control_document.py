"""What the OpenAPI document says of the control plane's calls: the forms of bodies, and of answers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from medport_local.control.asks import Row
from medport_local.control.deploy_forms import Deploy, DeployBeta, Mutate, MutateBeta, Undeploy
from medport_local.control.faults import RuleForm
from medport_local.control.forms_endpoint import Endpoint
from medport_local.control.forms_model import MergeVersionAliases, Model, UploadModel
from medport_local.control.garden_eula import EulaForm
from medport_local.control.garden_forms import GardenDeploy, GardenDeployBeta, RecommendSpec
from medport_local.serving.operations import Operation

_LIST = ("filter", "orderBy", "pageSize", "pageToken", "readMask")
_PAGES = ("filter", "pageSize", "pageToken")
_LATER = ("LongRunning",)
_OPERATION = re.compile(r"(get|list|wait|cancel|delete)[A-Za-z]*Operations?(Ui)?")


def _said(summary: str, **more: object) -> Operation:
    return Operation(summary=summary, tag="control", **more)  # type: ignore[arg-type]


_DESCRIBED: Mapping[str, Operation] = {
    "uploadModel": _said("Upload a model, or a version of one", form=UploadModel, reply=_LATER),
    "listModels": _said("The models, each in its default version", query=_LIST, reply=("ModelPage",)),
    "getModel": _said("A model, or with `@` a version of it", query=("readMask",), reply=("ModelResource",)),
    "updateModel": _said("Change a model", form=Model, query=("updateMask",), reply=("ModelResource",)),
    "deleteModel": _said("Delete a model with all its versions", reply=_LATER),
    "listModelVersions": _said("The versions of a model", query=_LIST, reply=("ModelPage",)),
    "deleteModelVersion": _said("Delete a version of a model", reply=_LATER),
    "mergeVersionAliases": _said("Give a version aliases", form=MergeVersionAliases, reply=("ModelResource",)),
    "createEndpoint": _said("Make an endpoint", form=Endpoint, query=("endpointId",), reply=_LATER),
    "listEndpoints": _said("The endpoints", query=_LIST, reply=("EndpointPage",)),
    "getEndpoint": _said("One endpoint", query=("readMask",), reply=("EndpointResource",)),
    "updateEndpoint": _said(
        "Change an endpoint", form=Endpoint, query=("updateMask",), reply=("EndpointResource",)
    ),
    "updateEndpointLongRunning": _said("Change an endpoint, as an operation", form=Endpoint, reply=_LATER),
    "deleteEndpoint": _said("Delete an endpoint that has no models", reply=_LATER),
    "deployModel": _said("Deploy a model: verify its snapshot and start it", form=Deploy, reply=_LATER),
    "undeployModel": _said("Undeploy a model once its requests are over", form=Undeploy, reply=_LATER),
    "mutateDeployedModel": _said("Change the replicas of a deployed model", form=Mutate, reply=_LATER),
    "getPublisherModel": _said("A model of Model Garden", reply=("AnyObject",)),
    "listPublisherModels": _said("The models of Model Garden", query=_LIST[:4], reply=("AnyObject",)),
    "deployPublisherModel": _said("Deploy a model of Model Garden", form=GardenDeploy, reply=_LATER),
    "recommendSpec": _said("Machines for a model", form=RecommendSpec, reply=("AnyObject",)),
    "checkEula": _said("Whether a model's terms are accepted", form=EulaForm, reply=("AnyObject",)),
    "acceptEula": _said("Accept a model's terms", form=EulaForm, reply=("AnyObject",)),
    "createFault": _said("Order a fault, for a rehearsal", form=RuleForm, reply=("AnyObject",)),
    "listFaults": _said("The faults that are ordered", reply=("AnyObject",)),
    "deleteFaults": _said("Take all faults back", reply=("Empty",)),
    "deleteFault": _said("Take a fault back", reply=("Empty",)),
}
_BETA: Mapping[str, Operation] = {
    "deployModel": _said("Deploy a model: verify its snapshot and start it", form=DeployBeta, reply=_LATER),
    "mutateDeployedModel": _said("Change the replicas of a deployed model", form=MutateBeta, reply=_LATER),
    "deployPublisherModel": _said("Deploy a model of Model Garden", form=GardenDeployBeta, reply=_LATER),
}
_OPERATIONS: Mapping[str, Operation] = {
    "get": _said("A long-running operation", reply=_LATER),
    "list": _said("Long-running operations", query=_PAGES, reply=("LongRunningPage",)),
    "wait": _said("A long-running operation, once it is done or the time is over", reply=_LATER),
    "cancel": _said("Ask a long-running operation to end", reply=("Empty",)),
    "delete": _said("Forget an operation that is done", reply=("Empty",)),
}


def described(row: Row, api: str) -> Operation | None:
    """What the document says of a row in one version of the API.

    ``None`` for what it leaves out: calls that are there to be refused, and ``/ui/``, which is ``/v1/`` under
    the path that Google's client polls.

    Raises:
        KeyError: nothing is said of it here.
    """
    if row.operation == "unsupported" or row.path.startswith("/ui/"):
        return None
    if found := _OPERATION.fullmatch(row.operation):
        return _OPERATIONS[found[1]]
    return (api == "v1beta1" and _BETA.get(row.operation)) or _DESCRIBED[row.operation]
