"""What Vertex has and this server does not: every such call is refused as what it is."""

from __future__ import annotations

import asyncio
import re
from collections import Counter

import pytest

from medport.errors import Unsupported, row_of
from medport_local.control import unsupported
from medport_local.control.asks import Ask, Row

ROWS = unsupported.rows()


def paths(row: Row) -> list[str]:
    return [row.path.replace("{api}", api) for api in ("v1", "v1beta1")] if "{api}" in row.path else [row.path]


def refused(method: str, path: str) -> Row | None:
    for row in ROWS:
        for template in paths(row):
            pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
            if row.method == method and re.fullmatch(pattern, path):
                return row
    return None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path}")
def test_every_row_answers_501_and_says_what_to_do(row: Row) -> None:
    with pytest.raises(Unsupported) as raised:
        asyncio.run(row.handler(Ask(api="v1")))

    assert row_of(raised.value).http == 501
    assert raised.value.remedy
    assert re.search(r" (is|are) not offered by this server", str(raised.value))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/projects/p/locations/europe-west4/endpoints/e:explain"),
        ("POST", "/v1beta1/projects/p/locations/europe-west4/endpoints/e:directPredict"),
        ("POST", "/v1/projects/p/locations/europe-west4/endpoints/e:serverStreamingPredict"),
        ("POST", "/v1beta1/projects/p/locations/europe-west4/endpoints/e:countTokens"),
        ("POST", "/v1/projects/p/locations/europe-west4/publishers/google/models/medgemma:predict"),
        ("POST", "/v1/projects/p/locations/europe-west4/deploymentResourcePools"),
        ("GET", "/v1/projects/p/locations/europe-west4/deploymentResourcePools/a:queryDeployedModels"),
        ("POST", "/v1/projects/p/locations/europe-west4/models/m@2:export"),
        ("GET", "/v1/projects/p/locations/europe-west4/models/m/evaluations/7/slices/8"),
        ("POST", "/google.cloud.aiplatform.v1.EndpointService/GetEndpoint"),
        ("POST", "/google.longrunning.Operations/GetOperation"),
    ],
)
def test_a_call_that_is_not_offered_is_refused_by_name(method: str, path: str) -> None:
    assert refused(method, path) is not None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/projects/p/locations/europe-west4/endpoints/e:predict"),
        ("POST", "/v1/projects/p/locations/europe-west4/endpoints/e:rawPredict"),
        ("POST", "/v1/projects/p/locations/europe-west4/endpoints/e:streamRawPredict"),
        ("POST", "/v1/projects/p/locations/europe-west4/endpoints/e:deployModel"),
        ("GET", "/v1/projects/p/locations/europe-west4/models/m"),
        ("POST", "/v1/projects/p/locations/europe-west4/models:upload"),
        ("POST", "/v1beta1/projects/p/locations/europe-west4:deploy"),
        ("GET", "/v1beta1/publishers/google/models/medgemma"),
    ],
)
def test_a_call_that_is_offered_is_not_refused(method: str, path: str) -> None:
    assert refused(method, path) is None


def test_no_call_is_refused_twice() -> None:
    counted = Counter((row.method, path) for row in ROWS for path in paths(row))

    assert [call for call, count in counted.items() if count > 1] == []


def test_grpc_is_told_which_transport_to_take() -> None:
    row = refused("POST", "/google.cloud.aiplatform.v1.PredictionService/Predict")

    assert row is not None
    with pytest.raises(Unsupported, match=r'aiplatform\.init\(api_transport="rest"\)'):
        asyncio.run(row.handler(Ask(api="v1")))
