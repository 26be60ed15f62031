"""``google_vertex_ai_endpoint`` over REST.

The id is the caller's and goes as ``endpointId``. An update is a PATCH with a mask; the body carries every
field that can be written, labels as the full merged map. Deleting is a bare DELETE: a service that still has
models deployed refuses, and they stay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from . import labels
from .api import Api, ApiError
from .resources import Refused, filled, known
from .schema import Type, shaped
from .transcoding import from_api, to_api
from .values import UNKNOWN, camel, same

Json = dict[str, Any]
_ID = "projects/{project}/locations/{location}/endpoints/{name}"
_LONG = re.compile(r"projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/endpoints/(?P<name>[^/]+)")
_SHORT = re.compile(r"(?:(?P<project>[^/]+)/)?(?P<location>[^/]+)/(?P<name>[^/]+)")
_NOT_TOLD = ("name", "location", "region", "project", "deletion_policy")
_AS_JSON = ("traffic_split",)


@dataclass(frozen=True, slots=True)
class Endpoint:
    of: Type

    def create(self, api: Api, planned: Json) -> Json:
        base = self._base(api, planned)
        url = filled("projects/{project}/locations/{location}/endpoints?endpointId={name}", planned)
        api.finished(base, api.call("POST", base + url, self._body(planned)))
        found = self.read(api, {**planned, "id": filled(_ID, planned)})
        if found is None:
            raise ApiError("the endpoint is gone right after it was made", 404)
        return found

    def read(self, api: Api, state: Json) -> Json | None:
        try:
            told = api.call("GET", self._base(api, state) + filled(_ID, state))
        except ApiError as fault:
            if fault.status == 404:
                return None
            raise
        found = from_api(self.of.block, told, state, kept=_NOT_TOLD, as_json=_AS_JSON)
        found |= labels.read(self.of.block, told.get("labels") or {}, state)
        return known(self.of.block, {**found, "timeouts": state.get("timeouts")})

    def update(self, api: Api, prior: Json, planned: Json) -> Json:
        if mask := self._changed(prior, planned):
            url = self._base(api, planned) + filled(_ID, planned) + "?updateMask=" + "%2C".join(mask)
            api.call("PATCH", url, {"labels": {}, **self._body(planned)})
        return self.read(api, planned) or prior

    def delete(self, api: Api, state: Json) -> None:
        base = self._base(api, state)
        try:
            api.finished(base, api.call("DELETE", base + filled(_ID, state)))
        except ApiError as fault:
            if fault.status != 404:
                raise

    def imported(self, of: Type, id_: str, provider: Json) -> Json:
        parts = _LONG.fullmatch(id_) or _SHORT.fullmatch(id_)
        if parts is None:
            raise Refused(f"import id {id_!r} doesn't match any of the accepted formats")
        said = {**parts.groupdict(), "project": parts["project"] or provider.get("project")}
        # The region is not read back: it is null after an import.
        return shaped(of, {**said, "id": filled(_ID, said), "deletion_policy": "DELETE"})

    def _base(self, api: Api, value: Json) -> str:
        # By the region, not by the location: they are the caller's to keep equal.
        region = value.get("region")
        return api.base(str(region if region and region is not UNKNOWN else api.provider.get("region") or ""))

    def _body(self, planned: Json) -> Json:
        body = to_api(self.of.block, planned, without=_NOT_TOLD, as_json=_AS_JSON)
        found = planned.get("effective_labels")
        return {**body, "labels": found} if isinstance(found, dict) and found else body

    def _changed(self, prior: Json, planned: Json) -> list[str]:
        """The fields of the mask."""
        block = self.of.block
        writable = [name for name, each in block.attributes.items() if not each.read_only and name != "id"]
        names = [name for name in (*writable, *block.blocks) if name not in (*_NOT_TOLD, "labels")]
        changed = [
            camel(name)
            for name in names
            if planned.get(name) is not UNKNOWN and not same(prior.get(name), planned.get(name))
        ]
        if not same(prior.get("effective_labels"), planned.get("effective_labels")):
            changed.append("labels")
        return sorted(changed)
