"""The check that asks a local server what our key may do. Nothing is changed.

The server tells nobody the rights of a key, but looks at them before anything else of a call. So it is sent calls
that it must refuse, without what they need and with a query that is unknown: whoever may do them is told that, and
whoever may not is told so.
"""

from __future__ import annotations

from collections.abc import Sequence

from medport.errors import Conflict, Forbidden, InputError, NotFound, NotReady, PreconditionFailed, Unsupported
from medport_deploy.first_run.preflight_google import Google

_OF_PROJECT = {
    "aiplatform.models.upload": "models:upload",
    "aiplatform.models.update": "models/-:mergeVersionAliases",
    "aiplatform.endpoints.create": "endpoints",
}
_OF_ENDPOINT = {
    "aiplatform.endpoints.deploy": "deployModel",
    "aiplatform.endpoints.undeploy": "undeployModel",
    "aiplatform.endpoints.predict": "predict",
}
_REFUSED = (InputError, NotFound, PreconditionFailed, Conflict, NotReady, Unsupported)
"""What only those are told who may do the call."""


def permissions(asked: Google, place: str, endpoints: Sequence[str]) -> str:
    """Whether we may upload, deploy and ask what was deployed.

    Args:
        place: URL of the project's location, with the version of the API.
        endpoints: ids of the specification's; they need not be there.

    Raises:
        Forbidden: we may not. Names the permissions.
    """
    calls = list(_OF_PROJECT.items())
    calls += [(verb, f"endpoints/{id_}:{call}") for id_ in endpoints for verb, call in _OF_ENDPOINT.items()]
    missing = sorted({verb for verb, path in calls if not _allowed(asked, f"{place}/{path}")})
    if missing:
        raise Forbidden(
            f"this key may not: {', '.join(missing)}",
            field="target.auth",
            remedy="on the server, for all endpoints: medport keys add NAME --keys FILE --action read"
            " --action deploy --action infer",
        )
    return ", ".join(sorted({verb.rpartition(".")[2] for verb, _ in calls})) + " are allowed"


def _allowed(asked: Google, url: str) -> bool:
    try:
        asked.post(url, {}, doing="ask what the key may do", onlyAsking="true")
    except Forbidden:
        return False
    except _REFUSED:
        return True
    return True
