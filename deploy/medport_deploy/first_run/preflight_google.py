"""What Google says before anything is deployed: is a call allowed, an API on, a machine there, an image readable.

Calls that change nothing, by httpx. An API that is not on, and a right that is missing, are ``Forbidden``; the
message tells which.

Source: REST references of Service Usage v1 (services.batchGet), Cloud Resource Manager v3 (projects.get,
testIamPermissions, getIamPolicy), IAM v1 (serviceAccounts.testIamPermissions), Artifact Registry v1
(repositories.getIamPolicy), Compute Engine v1 (machineTypes.aggregatedList), Cloud KMS v1 (cryptoKeys.get);
google.api.ErrorReason.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote

import httpx

from medport import _extras
from medport.errors import (
    AuthError,
    ConnectionFailed,
    Forbidden,
    MedportError,
    ProtocolError,
    Timeout,
)
from medport.wire.vertex import error_from
from medport_deploy.control.errors import translated

Json = dict[str, Any]
PROJECTS = "https://cloudresourcemanager.googleapis.com/v3"
SERVICES = "https://serviceusage.googleapis.com/v1"
IAM = "https://iam.googleapis.com/v1"
REGISTRY = "https://artifactregistry.googleapis.com/v1"
COMPUTE = "https://compute.googleapis.com/compute/v1"
KEYS = "https://cloudkms.googleapis.com/v1"
_DISABLED = "SERVICE_DISABLED"
_ERROR_DOMAIN = "googleapis.com"
_TIMEOUT = httpx.Timeout(15.0, connect=10.0)
_ZONE = re.compile(r"(?:zones|regions)/(?P<region>[a-z]+-[a-z]+[0-9]+)(?:-[a-z])?")


class Google:
    """The calls, with one credential.

    Args:
        credentials: gives google-auth's, when the first call needs them.
        project: its id or number.
        transport: of httpx; its own if none.
        verify: what to trust beside the public authorities; of ``httpx.Client``.
        direct: go through no proxy, whatever the environment says.
    """

    def __init__(
        self,
        credentials: Callable[[], Any],
        project: str,
        *,
        transport: httpx.BaseTransport | None = None,
        verify: Any = True,
        direct: bool = False,
    ) -> None:
        self._find = credentials
        self._project = project
        self._verify = verify
        self._client = httpx.Client(
            transport=transport,
            timeout=_TIMEOUT,
            verify=verify,
            follow_redirects=False,
            trust_env=not direct,
            headers={"user-agent": "medport"},
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @cached_property
    def _credentials(self) -> Any:
        return self._find()

    def renewed(self) -> Any:
        """The credentials with a token that is good now.

        Raises:
            AuthError: there is none, it has expired, or it was refused because of the clock.
        """
        found = self._credentials
        if not found.valid:
            requests = _extras.load("google.auth.transport.requests", extra="deploy")
            with translated("renew the credential"), _session(self._verify) as session:
                found.refresh(requests.Request(session))
        return found

    def date(self, url: str) -> str | None:
        """The ``Date`` of an answer of a host, whatever the answer is; asked without the credential.

        Raises:
            ConnectionFailed: the host cannot be reached.
        """
        found: str | None = self._sent("GET", url, None, {}, doing="ask for the time").headers.get("date")
        return found

    def get(self, url: str, *, doing: str, **query: Any) -> Json:
        """The JSON of a GET. Raises errors of ours; ``doing`` begins their message."""
        return self._asked("GET", url, None, query, doing)

    def post(self, url: str, body: Json, *, doing: str, **query: Any) -> Json:
        """The JSON of a POST that changes nothing."""
        return self._asked("POST", url, body, query, doing)

    def services_off(self, names: Sequence[str]) -> list[str]:
        """Those of some APIs that are not on."""
        parent = f"projects/{self._project}"
        said = self.get(
            f"{SERVICES}/{parent}/services:batchGet",
            doing="ask which APIs are on",
            names=[f"{parent}/services/{name}" for name in names],
        )
        on = {
            str(each.get("name", "")).rpartition("/")[2]
            for each in _listed(said, "services")
            if each.get("state") == "ENABLED"
        }
        return [name for name in names if name not in on]

    def project_number(self) -> str:
        """The project's number. Raises ``ProtocolError`` if the answer has none."""
        if self._project.isdecimal():
            return self._project
        said = self.get(f"{PROJECTS}/projects/{quote(self._project)}", doing="look the project up")
        number = str(said.get("name", "")).rpartition("/")[2]
        if not number.isdecimal():
            raise ProtocolError("the project's number cannot be read", field="target.project")
        return number

    def missing_permissions(self, resource: str, wanted: Collection[str]) -> list[str]:
        """Those of some permissions that we do not have.

        Args:
            resource: URL of what they are on, without the verb.
        """
        said = self.post(
            f"{resource}:testIamPermissions",
            {"permissions": sorted(wanted)},
            doing="ask which permissions we have",
        )
        have = said.get("permissions", [])
        return sorted(set(wanted) - set(have if isinstance(have, list) else ()))

    def roles_of(self, member: str, policy_of: str, *, post: bool = False) -> set[str]:
        """The roles that a policy gives to somebody, or to everybody.

        Args:
            member: such as ``serviceAccount:NAME@…``.
            policy_of: URL of what the policy is on, without the verb.
            post: how this API is asked.
        """
        doing, url = "read who may do what", f"{policy_of}:getIamPolicy"
        said = self.post(url, {}, doing=doing) if post else self.get(url, doing=doing)
        wanted = {member, "allUsers", "allAuthenticatedUsers"}
        return {
            str(each.get("role"))
            for each in _listed(said, "bindings")
            if wanted & set(each.get("members", ())) and not each.get("condition")
        }

    def regions_with(self, machine_type: str) -> set[str]:
        """Where Compute Engine has a machine type."""
        said = self.get(
            f"{COMPUTE}/projects/{self._project}/aggregated/machineTypes",
            doing="ask where the machine type is",
            filter=f"name={machine_type}",
            returnPartialSuccess="true",
        )
        items = said.get("items")
        places = items.items() if isinstance(items, Mapping) else ()
        return {
            found["region"]
            for place, held in places
            if held.get("machineTypes") and (found := _ZONE.fullmatch(place))
        }

    def _asked(self, method: str, url: str, body: Json | None, query: Mapping[str, Any], doing: str) -> Json:
        headers: dict[str, str] = {}
        self.renewed().apply(headers)
        answer = self._sent(method, url, body, query, doing=doing, headers=headers)
        if answer.status_code != 200:
            raise _refused(answer, self._project, doing)
        try:
            said = answer.json()
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise ProtocolError(
                f"{doing}: the answer cannot be read", field="target.url", remedy="check the address"
            )
        return said

    def _sent(
        self, method: str, url: str, body: Json | None, query: Mapping[str, Any], *, doing: str,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:  # fmt: skip
        try:
            return self._client.request(method, url, json=body, params=dict(query), headers=headers)
        except httpx.TimeoutException as fault:
            raise Timeout(f"{doing}: {httpx.URL(url).host} does not answer in time") from fault
        except httpx.TransportError as fault:
            if "CERTIFICATE_VERIFY_FAILED" in str(fault):
                raise ConnectionFailed(
                    f"{doing}: the certificate of {httpx.URL(url).host} is not trusted",
                    field="target.ca_file",
                    remedy="give the file of its authority",
                ) from fault
            raise ConnectionFailed(
                f"{doing}: {httpx.URL(url).host} cannot be reached ({type(fault).__name__})",
                field="target",
                remedy="check the address, the proxy (HTTPS_PROXY) and the firewall",
            ) from fault


def _session(trusted: Any) -> Any:
    """A session of requests, which google-auth needs, that trusts whom ``httpx.Client`` trusts with ``verify``."""
    session = _extras.load("requests", extra="deploy").Session()
    # Else a ~/.netrc's password is sent along.
    session.auth = lambda request: request
    if not isinstance(trusted, ssl.SSLContext):
        return session
    adapters = _extras.load("requests.adapters", extra="deploy")

    class Trusting(adapters.HTTPAdapter):  # type: ignore[misc, name-defined]
        def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
            # The environment's bundle has no say, as with httpx.
            return super().send(request, *arguments, **{**options, "verify": True})

        def init_poolmanager(self, *arguments: Any, **options: Any) -> Any:
            return super().init_poolmanager(*arguments, **{**options, "ssl_context": trusted})

        def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
            return super().proxy_manager_for(proxy, **{**options, "ssl_context": trusted})

        def cert_verify(self, *arguments: Any) -> None:
            """Leaves the context's authorities as they are: requests would add its own."""

    session.mount("https://", Trusting())
    return session


def _refused(answer: httpx.Response, project: str, doing: str) -> MedportError:
    if (service := _disabled(answer.content)) is not None:
        return Forbidden(
            f"{doing}: {service} is not on in {project}",
            field="target.project",
            remedy=f"gcloud services enable {service} --project {project}; it takes a minute",
        )
    found = error_from(answer.status_code, answer.content)
    if answer.status_code == 403 and not isinstance(found, Forbidden):
        found = Forbidden(found.message, field=found.field, remedy=found.remedy)
    found.message = f"{doing}: {found.message}"
    found.args = (found.message,)
    if isinstance(found, AuthError) and answer.status_code == 401:
        found.remedy = found.remedy or "renew the credential"
    return found


def _disabled(content: bytes) -> str | None:
    """The API that an error says is not on."""
    try:
        details = json.loads(content)["error"].get("details", [])
        for each in details:
            if each.get("reason") == _DISABLED and each.get("domain") == _ERROR_DOMAIN:
                return str(each.get("metadata", {}).get("service") or "the API")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return None


def _listed(said: Mapping[str, Any], key: str) -> list[Json]:
    found = said.get(key, [])
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
