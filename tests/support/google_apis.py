"""Google's APIs as far as a look before deploying asks them: a transport of httpx, with answers in their form.

No account is at hand, so a double stands for Google and for nothing else. The forms are those of the REST
references (Service Usage v1, Cloud Resource Manager v3, IAM v1, Artifact Registry v1, Compute Engine v1, Cloud KMS
v1) and of google.rpc.ErrorInfo; none was recorded from a call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import httpx

Json = dict[str, Any]
NUMBER = "420420420420"
AGENT = f"service-{NUMBER}@gcp-sa-aiplatform.iam.gserviceaccount.com"
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": 3 * 2**30}],
    }
).encode()
DIGEST = "sha256:" + hashlib.sha256(MANIFEST).hexdigest()
Answer = Callable[[httpx.Request], httpx.Response]


def error(status: int, code: str, message: str, *, reason: str | None = None, **metadata: str) -> Answer:
    """An answer in the form of ``google.rpc.Status``."""
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}
    said: Json = {"code": status, "message": message, "status": code}
    if reason is not None:
        said["details"] = [{**info, "metadata": metadata}]
    return lambda request: httpx.Response(status, json={"error": said})


def disabled(service: str) -> Answer:
    """What an API that is not on answers."""
    return error(
        403,
        "PERMISSION_DENIED",
        f"The API {service} has not been used in project {NUMBER} before or it is disabled.",
        reason="SERVICE_DISABLED",
        service=service,
        consumer=f"projects/{NUMBER}",
    )


def said(body: Json) -> Answer:
    return lambda request: httpx.Response(200, json=body)


FORBIDDEN = error(403, "PERMISSION_DENIED", "The caller does not have permission")


@dataclass
class GoogleApis:
    """All is well unless ``answers`` says otherwise, by ``HOST/PATH`` or by its beginning."""

    answers: dict[str, Answer] = field(default_factory=dict)
    skew_s: float = 0.0
    """How far its clock is ahead."""
    now: float = 1_800_000_000.0
    tells_time: bool = True
    requests: list[httpx.Request] = field(default_factory=list)

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        place = f"{request.url.host}{request.url.path}"
        found = [each for each in self.answers if place.startswith(each)]
        answer = self.answers[max(found, key=len)](request) if found else self._well(place, request)
        if self.tells_time:
            answer.headers["date"] = formatdate(self.now + self.skew_s, usegmt=True)
        return answer

    def _well(self, place: str, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"{}")
        if place.endswith("-aiplatform.googleapis.com/"):
            return httpx.Response(404)
        if place.endswith("/endpoints"):
            return httpx.Response(200, json={})
        if place.endswith("services:batchGet"):
            names = request.url.params.get_list("names")
            return httpx.Response(200, json={"services": [{"name": each, "state": "ENABLED"} for each in names]})
        if place.endswith(":testIamPermissions"):
            return httpx.Response(200, json={"permissions": body["permissions"]})
        if place == "cloudresourcemanager.googleapis.com/v3/projects/radiology":
            return httpx.Response(200, json={"name": f"projects/{NUMBER}", "projectId": "radiology"})
        if place.startswith("artifactregistry.googleapis.com/") and place.endswith(":getIamPolicy"):
            return httpx.Response(200, json=reader(f"serviceAccount:{AGENT}"))
        if place.endswith(":getIamPolicy"):
            return httpx.Response(200, json={"etag": "BwY="})
        if place.endswith("/aggregated/machineTypes"):
            here = {"machineTypes": [{"name": "g2-standard-24"}]}
            nothing = {"warning": {"code": "NO_RESULTS_ON_PAGE"}}
            places = {"zones/europe-west4-a": here, "zones/us-central1-b": here, "zones/europe-west1-b": nothing}
            return httpx.Response(200, json={"items": places})
        if place.startswith("cloudkms.googleapis.com/"):
            return httpx.Response(200, json={"primary": {"state": "ENABLED"}})
        if "/v2/" in place and "/manifests/" in place:
            kind = "application/vnd.oci.image.manifest.v1+json"
            return httpx.Response(200, content=MANIFEST, headers={"content-type": kind})
        raise AssertionError(f"nobody asks {place}")


def reader(*members: str, role: str = "roles/artifactregistry.reader", **more: Any) -> Json:
    """A policy with one binding."""
    return {"bindings": [{"role": role, "members": list(members), **more}], "etag": "BwY="}
