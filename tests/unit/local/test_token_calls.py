"""``POST /token`` and doors for service accounts on a real socket: forms, OAuth's errors, audit, logs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from support.service_accounts import ServiceAccount, pair, registered
from support.web import serving

from medport.errors import InputError
from medport_local.serving import chain, keys
from medport_local.serving.audit import AuditLog
from medport_local.serving.exchange import JSON, Door, Exchange, http_error, unrouted
from medport_local.serving.guard import Guard
from medport_local.serving.keyring import KeyRing
from medport_local.serving.routes import Route, starlette_routes
from medport_local.serving.token_calls import GRANT_TYPE, TokenCalls

ENDPOINTS = "/v1/projects/local/locations/europe-west4/endpoints"
DEPLOY = f"{ENDPOINTS}/chest:deployModel"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def change(exchange: Exchange) -> Response:
    exchange.permit_any()
    body = await exchange.json()
    if body.get("broken"):
        raise InputError("no", field="model")
    return JSON({"done": True})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def account(file: Path) -> ServiceAccount:
    return registered(file, now=time.time(), actions=["deploy"], models=["chest"])


@pytest.fixture
def guard(account: ServiceAccount, file: Path, tmp_path: Path) -> Iterator[Guard]:
    made = Guard(keys=KeyRing(file=file), audit=AuditLog(tmp_path / "audit"))
    made.lifecycle.start()
    yield made
    assert made.audit is not None
    made.audit.close()


@pytest.fixture
def client(guard: Guard) -> Iterator[httpx.Client]:
    verb = "aiplatform.endpoints."
    table = (
        Route("POST", f"{ENDPOINTS}/{{endpoint}}:deployModel", change, "deploy", "", verb=f"{verb}deploy"),
        Route("POST", ENDPOINTS, change, "deploy", "", verb=f"{verb}create"),
        Route("POST", "/medport/v1/faults", change, "admin", "", verb="medport.faults.create"),
        *TokenCalls(guard.keys).table(),
    )
    app = Starlette(routes=starlette_routes(table, guard), exception_handlers={HTTPException: http_error})
    app.router.default = Door("-", unrouted, None, guard)
    with serving(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as made:
        yield made


def asked(account: ServiceAccount) -> dict[str, str]:
    return {"grant_type": GRANT_TYPE, "assertion": account.assertion()}


def asserting(text: str) -> bytes:
    return urlencode({"assertion": text, "grant_type": GRANT_TYPE}).encode()


def bearer(token: str, request_id: str = "r1") -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "X-Request-Id": request_id}


def records(folder: Path, request_id: str = "r1") -> list[dict[str, object]]:
    return chain.find(folder / "audit", request_id)


@pytest.mark.parametrize("form", ["form", "json"])
def test_assertion_gives_a_token_for_an_hour(client: httpx.Client, account: ServiceAccount, form: str) -> None:
    answer = (
        client.post("/token", json=asked(account))
        if form == "json"
        else client.post("/token", data=asked(account))
    )

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    token = answer.json().pop("access_token")
    assert answer.json() == {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}
    assert client.post(DEPLOY, json={}, headers=bearer(token)).json() == {"done": True}


@pytest.mark.parametrize(
    ("body", "headers", "error"),
    [
        (b"", FORM, "invalid_request"),
        (b"assertion=x", FORM, "invalid_request"),
        (b"grant_type=" + GRANT_TYPE.encode(), FORM, "invalid_request"),
        (urlencode({"grant_type": "password", "assertion": "x"}).encode(), FORM, "unsupported_grant_type"),
        (
            urlencode({"grant_type": "refresh_token", "refresh_token": "x"}).encode(),
            FORM,
            "unsupported_grant_type",
        ),
        (urlencode({"grant_type": GRANT_TYPE, "assertion": "x"}).encode(), FORM, "invalid_grant"),
        (urlencode({"grant_type": GRANT_TYPE, "assertion": "a.b.c"}).encode(), FORM, "invalid_grant"),
        (b"grant_type=a&grant_type=b", FORM, "invalid_request"),
        (b"&".join(b"a%d=1" % i for i in range(40)), FORM, "invalid_request"),
        (b"grant_type=%zz&=&;", FORM, "invalid_request"),
        ("grant_type=é".encode(), FORM, "invalid_request"),
        (b'{"grant_type": 7}', {"Content-Type": "application/json"}, "invalid_request"),
        (b'{"grant_type": "a"', {"Content-Type": "application/json"}, "invalid_request"),
        (b"[1]", {"Content-Type": "application/json"}, "invalid_request"),
        (b"grant_type=a", {}, "invalid_request"),
        (b"<x/>", {"Content-Type": "text/xml"}, "invalid_request"),
    ],
)
def test_request_for_a_token_in_a_wrong_form_is_refused_as_oauth_says(
    client: httpx.Client, body: bytes, headers: dict[str, str], error: str
) -> None:
    answer = client.post("/token", content=body, headers=headers)

    assert answer.status_code == 400
    assert answer.json()["error"] == error
    assert answer.json()["error_description"]


def test_assertion_that_is_too_large_is_refused_before_it_is_read(client: httpx.Client) -> None:
    for size in (40_000, 1_000_000):
        answer = client.post("/token", data={"grant_type": GRANT_TYPE, "assertion": "a" * size})

        assert answer.status_code == 413
        assert answer.json()["error"] == "invalid_request"


def test_clock_that_is_wrong_is_said_in_googles_words(client: httpx.Client, account: ServiceAccount) -> None:
    late = ServiceAccount(account.email, account.now - 7200)

    answer = client.post("/token", data=asked(late)).json()

    assert answer["error"] == "invalid_grant"
    assert "short-lived token (60 minutes)" in answer["error_description"]
    assert "clock" in answer["error_description"]


def test_get_of_a_token_is_no_route(client: httpx.Client) -> None:
    assert client.get("/token").status_code == 405


def test_server_that_stops_gives_no_tokens(client: httpx.Client, guard: Guard, account: ServiceAccount) -> None:
    guard.lifecycle.refuse()

    answer = client.post("/token", data=asked(account))

    assert answer.status_code == 503
    assert answer.json()["error"] == "temporarily_unavailable"


def test_token_of_a_megabyte_is_refused_with_the_whole_head(client: httpx.Client) -> None:
    for size in (20_000, 1_000_000):
        try:
            answer = client.post(DEPLOY, json={}, headers=bearer("a." * size))
        except httpx.TransportError:
            continue  # a server may hang up on a head of that size
        assert answer.status_code in (400, 401, 431)


def test_account_is_forbidden_what_it_may_not_in_googles_words(
    client: httpx.Client, account: ServiceAccount
) -> None:
    token = account.token()
    answers = [
        client.post(DEPLOY.replace("chest", "abdomen"), json={}, headers=bearer(token)),
        client.post(ENDPOINTS, json={}, headers=bearer(token)),
        client.post("/medport/v1/faults", json={}, headers=bearer(token)),
    ]

    assert [answer.status_code for answer in answers] == [403, 403, 403]
    assert answers[1].json()["error"]["status"] == "PERMISSION_DENIED"
    assert (
        answers[1]
        .json()["error"]["message"]
        .startswith(
            "Permission 'aiplatform.endpoints.create' denied on resource "
            "'//aiplatform.googleapis.com/projects/local/locations/europe-west4' (or it may not exist)."
        )
    )
    assert "chest" not in answers[0].text


def test_change_is_in_the_log_before_and_after_it_is_made(
    client: httpx.Client, account: ServiceAccount, tmp_path: Path
) -> None:
    client.post(DEPLOY, json={"secret": "CANARY"}, headers=bearer(account.token()))

    began, done = records(tmp_path)
    said = {key: done[key] for key in ("key", "action", "verb", "resource", "route", "status", "error")}
    assert (began["event"], done["event"]) == ("began", "request")
    assert said == {
        "key": "ci", "action": "deploy", "verb": "aiplatform.endpoints.deploy",
        "resource": "projects/local/locations/europe-west4/endpoints/chest",
        "route": f"{ENDPOINTS}/{{endpoint}}:deployModel", "status": 200, "error": None,
    }  # fmt: skip
    assert "CANARY" not in str(done)


def test_change_that_failed_or_was_forbidden_is_in_the_log_too(
    client: httpx.Client, account: ServiceAccount, tmp_path: Path
) -> None:
    token = account.token()
    client.post(DEPLOY, json={"broken": True}, headers=bearer(token, "failed"))
    client.post(ENDPOINTS, json={}, headers=bearer(token, "forbidden"))

    _, failed = records(tmp_path, "failed")
    assert (failed["status"], failed["error"]) == (400, "InputError")
    (forbidden,) = records(tmp_path, "forbidden")
    assert (forbidden["key"], forbidden["status"], forbidden["error"]) == ("ci", 403, "Forbidden")


def test_change_by_nobody_who_is_known_is_not_in_the_log(client: httpx.Client, tmp_path: Path) -> None:
    assert client.post(DEPLOY, json={}, headers=bearer("wrong")).status_code == 401

    assert not list((tmp_path / "audit").glob("*.jsonl"))


def test_change_is_not_made_if_the_log_cannot_have_it(
    client: httpx.Client, guard: Guard, account: ServiceAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert guard.audit is not None
    monkeypatch.setattr(guard.audit, "_ending", _Set())

    answer = client.post(DEPLOY, json={}, headers=bearer(account.token()))

    assert answer.status_code == 503
    assert "audit log" in answer.text


class _Set:
    def is_set(self) -> bool:
        return True

    def set(self) -> None:
        pass

    def wait(self, timeout: float) -> bool:
        return True


def test_changes_count_against_the_rate_of_who_makes_them(
    client: httpx.Client, file: Path, account: ServiceAccount
) -> None:
    slow = registered(file, "slow", now=account.now, which=1, actions=["deploy"], rate="1/h")
    time.sleep(1.1)  # the file is looked at every second

    answers = [client.post(DEPLOY, json={}, headers=bearer(slow.token())).status_code for _ in range(2)]

    assert answers == [200, 429]


def test_no_token_nor_assertion_gets_into_the_logs(
    client: httpx.Client, account: ServiceAccount, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    forged = ServiceAccount(account.email, account.now, pair(1))
    assertion, token, bad = account.assertion(), account.token(), forged.assertion()
    granted = client.post("/token", data={"grant_type": GRANT_TYPE, "assertion": assertion}).json()["access_token"]
    client.post("/token", data={"grant_type": GRANT_TYPE, "assertion": bad})
    for each in (token, granted, bad):
        client.post(DEPLOY, json={}, headers=bearer(each))
    client.post(f"{DEPLOY}?key={token}", json={})

    written = "".join(path.read_text() for path in (tmp_path / "audit").glob("*.jsonl"))
    ours = "\n".join(each.getMessage() for each in caplog.records if each.name.startswith("medport"))
    assert len(written) > 100
    assert len(ours) > 100
    for secret in (assertion, token, bad, granted):
        for part in (secret, secret.split(".")[-1], secret.split("~")[-1]):
            assert part not in written
            assert part not in ours


@pytest.mark.parametrize("name", ["key", "access_token"])
def test_key_in_a_url_is_refused_and_said_to_be_known(client: httpx.Client, file: Path, name: str) -> None:
    key = keys.add(file, "gateway", actions=["deploy"])
    time.sleep(1.1)

    answer = client.post(f"{DEPLOY}?alt=json&{name}={key}", json={})
    beside = client.post(f"{DEPLOY}?{name}=anything", json={}, headers={"x-goog-api-key": key})

    assert answer.status_code == 401
    assert "URLs end up in logs" in answer.text
    assert key not in answer.text
    assert beside.status_code == 200


def test_question_of_googles_client_for_allowed_locations_is_a_404_in_an_envelope(client: httpx.Client) -> None:
    answer = client.get("/v1/projects/-/serviceAccounts/ci@local.iam.gserviceaccount.com/allowedLocations")

    assert answer.status_code == 404
    assert answer.json()["error"]["status"] == "NOT_FOUND"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    body=st.binary(max_size=300) | st.text(max_size=200).map(asserting),
    kind=st.sampled_from(["application/x-www-form-urlencoded", "application/json", "text/plain"]),
)  # fmt: skip
def test_whatever_is_posted_is_refused_and_breaks_nothing(client: httpx.Client, body: bytes, kind: str) -> None:
    answer = client.post("/token", content=body, headers={"Content-Type": kind})

    assert answer.status_code == 400
    assert answer.json().keys() == {"error", "error_description"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    token=st.text(
        alphabet=st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"),
        min_size=1,
        max_size=100,
    )
)
def test_whatever_is_borne_is_a_401(client: httpx.Client, token: str) -> None:
    answer = client.post(DEPLOY, json={}, headers={"Authorization": b"Bearer " + token.encode("latin-1")})

    assert answer.status_code == 401
