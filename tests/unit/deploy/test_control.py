"""The control plane's calls: what a raw client lets through to its user, and what is made of it here."""

from __future__ import annotations

import itertools
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import deploying
from support.certificates import Authority
from support.plane_server import KEY, PlaneServer
from support.web import RawServer

from medport.errors import (
    AlreadyExists,
    AuthError,
    ConfigError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    InputError,
    MedportError,
    NotFound,
    NotReady,
    PreconditionFailed,
    ProtocolError,
    QuotaExceeded,
    ServerError,
    Timeout,
)
from medport_deploy import names
from medport_deploy.control import credentials as control_credentials
from medport_deploy.control.errors import clean, operation_error
from medport_deploy.control.plane import ControlPlane
from medport_deploy.control.polling import Clock, Polling, StillRunning
from medport_deploy.run import split_math

Json = dict[str, Any]
ENDPOINT = {"displayName": "reader", "dedicatedEndpointEnabled": True}


def order(plane: PlaneServer, **rule: Any) -> str:
    """Order a fault; gives its id."""
    answer = plane.http.post("/medport/v1/faults", json=rule)
    answer.raise_for_status()
    return str(answer.json()["id"])


def hits(plane: PlaneServer, id_: str) -> int:
    faults = plane.http.get("/medport/v1/faults").json()["faults"]
    return next(int(each["hits"]) for each in faults if each["id"] == id_)


def http(status: int, **more: Any) -> Json:
    return {"status": status, "message": "on purpose", **more}


@dataclass(frozen=True)
class Auth:
    """A specification's ``target.auth``."""

    api_key_env: str | None = None
    credentials_file: str | None = None


@pytest.fixture
def endpoint(control: ControlPlane, request: pytest.FixtureRequest) -> str:
    """An endpoint of the test's own."""
    id_ = f"e{abs(hash(request.node.name)) % 10**8}"
    control.wait(control.create_endpoint(ENDPOINT, endpoint_id=id_))
    return id_


def test_resources_are_what_the_rest_reference_says(control: ControlPlane, endpoint: str) -> None:
    found = control.get_endpoint(endpoint)

    assert found["displayName"] == "reader"
    assert found["dedicatedEndpointEnabled"] is True
    assert found["name"].endswith(f"/locations/europe-west4/endpoints/{endpoint}")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_read_that_fails_for_a_while_comes_through(
    plane: PlaneServer, control: ControlPlane, endpoint: str, status: int
) -> None:
    fault = order(plane, times=2, match={"method": "GET", "path": "*/endpoints/{endpoint}"}, http=http(status))

    control.get_endpoint(endpoint)

    assert hits(plane, fault) == 2


def test_read_that_fails_for_good_fails_after_five_attempts(
    plane: PlaneServer, control: ControlPlane, endpoint: str
) -> None:
    fault = order(plane, match={"method": "GET", "path": "*/endpoints/{endpoint}"}, http=http(503))

    with pytest.raises(ServerError, match="get endpoint: on purpose"):
        control.get_endpoint(endpoint)

    assert hits(plane, fault) == 5


def test_call_that_changes_something_is_sent_once(plane: PlaneServer, control: ControlPlane) -> None:
    fault = order(plane, match={"method": "POST", "path": "*/endpoints"}, http=http(503))

    with pytest.raises(ServerError):
        control.create_endpoint(ENDPOINT, endpoint_id="once")

    assert hits(plane, fault) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_wait_survives_polls_that_fail(plane: PlaneServer, control: ControlPlane, status: int) -> None:
    order(plane, times=1, operation={"kind": "createEndpoint", "slowSeconds": 0.5})
    operation = control.create_endpoint(ENDPOINT, endpoint_id=f"slow-{status}")
    fault = order(plane, times=3, match={"method": "GET", "path": "/ui/*"}, http=http(status))

    control.wait(operation)

    assert not operation.get("done")
    assert hits(plane, fault) == 3
    assert control.get_endpoint(f"slow-{status}")


def test_credential_that_expires_while_an_operation_runs_is_read_again(plane: PlaneServer) -> None:
    reads = 0

    def read() -> str:
        nonlocal reads
        reads += 1
        return KEY

    target = deploying.Target(plane.url, plane.line["ca_file"])
    with ControlPlane(target, control_credentials.bearer(read), polling=deploying.FAST) as control:
        order(plane, times=1, operation={"kind": "createEndpoint", "slowSeconds": 0.5})
        operation = control.create_endpoint(ENDPOINT, endpoint_id="renewed")
        order(plane, times=1, match={"method": "GET", "path": "/ui/*"}, http=http(401))
        control.wait(operation)

    assert reads == 2


def test_credential_that_stays_refused_ends_the_wait_and_says_what_goes_on(
    plane: PlaneServer, control: ControlPlane
) -> None:
    order(plane, times=1, operation={"kind": "createEndpoint", "slowSeconds": 0.5})
    operation = control.create_endpoint(ENDPOINT, endpoint_id="expired")
    order(plane, match={"method": "GET", "path": "/ui/*"}, http=http(401))

    with pytest.raises(AuthError) as refused:
        control.wait(operation)

    assert operation["name"] in str(refused.value)
    assert "renew the credential" in str(refused.value)


def test_server_of_the_sites_own_is_called_through_no_proxy(
    plane: PlaneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    ca_file = plane.line["ca_file"]

    with deploying.plane(plane.url, ca_file, KEY, direct=True) as control:
        found = control.list_endpoints({})

    assert isinstance(found, list)
    with (
        deploying.plane(plane.url, ca_file, KEY, attempts=1) as control,
        pytest.raises(ConnectionFailed),
    ):
        control.list_endpoints({})


def test_password_of_this_machine_does_not_take_the_place_of_the_key(
    plane: PlaneServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("default login e password p\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))

    with deploying.plane(plane.url, plane.line["ca_file"], KEY) as control:
        assert isinstance(control.list_endpoints({}), list)


@pytest.mark.parametrize("key", ["two\nlines", "two words", "bell\x07"])
def test_key_that_no_header_takes_is_refused_without_being_told(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("SOME_KEY", key)

    with pytest.raises(ConfigError, match="SOME_KEY holds no API key") as refused:
        control_credentials.from_variable("SOME_KEY")()

    assert key not in "".join(traceback.format_exception(refused.value))


def test_wrong_key_is_refused_without_being_told(plane: PlaneServer) -> None:
    with (
        deploying.plane(plane.url, plane.line["ca_file"], "some-other-key-of-length") as control,
        pytest.raises(AuthError) as refused,
    ):
        control.get_endpoint("chest")

    said = [str(refused.value), repr(refused.value.__cause__)]
    assert not any("some-other-key" in each for each in said)


@pytest.mark.parametrize(
    ("auth", "remedy"),
    [
        ({"api_key_env": "DESK_KEY"}, "put a key that is good into DESK_KEY, then run the same command again"),
        ({"credentials_file": "keys/ci.json"}, "replace the key in ci.json, then run the same command again"),
        ({}, "log in again (gcloud auth application-default login), then run the same command again"),
    ],
)
def test_credential_that_is_refused_names_the_one_to_renew(plane: PlaneServer, auth: Json, remedy: str) -> None:
    renew = control_credentials.renewal(Auth(**auth))

    with (
        deploying.plane(plane.url, plane.line["ca_file"], "some-other-key-of-length", renew=renew) as control,
        pytest.raises(AuthError) as refused,
    ):
        control.get_endpoint("chest")

    assert (refused.value.remedy or "").startswith(remedy)


def test_wait_ends_at_its_deadline_and_names_the_operation(plane: PlaneServer, control: ControlPlane) -> None:
    order(plane, times=1, operation={"kind": "createEndpoint", "slowSeconds": 1})
    operation = control.create_endpoint(ENDPOINT, endpoint_id="late")

    with pytest.raises(Timeout) as late:
        control.wait(operation, deadline_s=0.2)

    assert operation["name"] in str(late.value)


def test_pending_are_the_operations_under_way(plane: PlaneServer, control: ControlPlane, endpoint: str) -> None:
    order(plane, times=1, operation={"kind": "*", "slowSeconds": 0.5})
    operation = control.set_inference_timeout(endpoint, 300)

    pending = control.pending(control.endpoint_name(endpoint))
    control.wait(operation)

    assert [each["name"] for each in pending] == [operation["name"]]
    assert control.pending(control.endpoint_name(endpoint)) == []
    assert control.get_endpoint(endpoint)["clientConnectionConfig"] == {"inferenceTimeout": "300s"}


def test_nothing_is_under_way_at_what_is_not_there(control: ControlPlane) -> None:
    assert control.pending(control.endpoint_name("nowhere")) == []
    assert control.pending(control.model_name("nothing")) == []


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda control, id_: control.get_endpoint("nowhere"), NotFound),
        (lambda control, id_: control.list_versions("nothing"), NotFound),
        (lambda control, id_: control.create_endpoint(ENDPOINT, endpoint_id=id_), AlreadyExists),
        (lambda control, id_: control.create_endpoint(ENDPOINT, endpoint_id="-"), InputError),
        (lambda control, id_: control.create_endpoint({"colour": "red"}, endpoint_id="new"), InputError),
        (lambda control, id_: control.set_traffic(id_, {"77": 100}), InputError),
        (lambda control, id_: control.undeploy_model(id_, "77"), NotFound),
    ],
)
def test_refusals_are_typed_and_say_what_to_do(
    control: ControlPlane, endpoint: str, call: Callable[[ControlPlane, str], object], kind: type[MedportError]
) -> None:
    with pytest.raises(kind) as refused:
        call(control, endpoint)

    assert type(refused.value) is kind
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        (http(400, rpcStatus="FAILED_PRECONDITION"), PreconditionFailed),
        (http(400), InputError),
        (http(403), Forbidden),
        (http(409), Conflict),
        (http(409, rpcStatus="ALREADY_EXISTS"), AlreadyExists),
        (http(429), QuotaExceeded),
        (http(500, text="<html>upstream</html>"), ServerError),
    ],
)
def test_googles_status_decides_and_not_the_http_status_alone(
    plane: PlaneServer, control: ControlPlane, endpoint: str, rule: Json, kind: type[MedportError]
) -> None:
    order(plane, match={"method": "DELETE", "path": "*/endpoints/{endpoint}"}, http=rule)

    with pytest.raises(kind) as refused:
        control.delete_endpoint(endpoint)

    assert type(refused.value) is kind
    assert "html" not in str(refused.value)


def test_split_that_somebody_else_set_is_not_overwritten(control: ControlPlane, endpoint: str) -> None:
    with pytest.raises(Conflict, match="which this run has not set"):
        control.set_traffic(endpoint, {"1": 100}, unless_not=[{"2": 100}])


def test_server_that_never_answers_is_a_timeout_and_not_a_wait_without_end() -> None:
    def silent(connection: socket.socket, stop: threading.Event) -> None:
        stop.wait(30)

    with (
        RawServer(silent) as server,
        deploying.plane(f"http://127.0.0.1:{server.port}", None, KEY, timeout_s=0.2, attempts=1) as control,
        pytest.raises(Timeout, match=rf"no answer in time from 127\.0\.0\.1:{server.port}"),
    ):
        control.get_endpoint("chest")


def test_answer_that_is_no_json_is_a_protocol_error() -> None:
    def wrong(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\n<a/>")

    with (
        RawServer(wrong) as server,
        deploying.plane(f"http://127.0.0.1:{server.port}", None, KEY, attempts=1) as control,
        pytest.raises(ProtocolError),
    ):
        control.get_endpoint("chest")


def test_server_that_is_not_there_is_a_failed_connection() -> None:
    with socket.socket() as held, deploying.plane("http://127.0.0.1:1", None, KEY, attempts=1) as control:
        held.bind(("127.0.0.1", 0))

        with pytest.raises(ConnectionFailed, match=r": 127\.0\.0\.1:1 could not be reached"):
            control.get_endpoint("chest")


def test_foreign_certificate_is_refused_at_once(plane: PlaneServer, authority: Authority, tmp_path: Path) -> None:
    other = tmp_path / "ca.pem"
    other.write_bytes(authority.ca_file.read_bytes())

    with (
        deploying.plane(plane.url, str(other), KEY) as control,
        pytest.raises(ConnectionFailed, match=r"the certificate of 127\.0\.0\.1:\d+ is not trusted") as refused,
    ):
        control.get_endpoint("chest")

    assert not refused.value.retryable
    assert refused.value.field == "target.ca_file"


def test_authority_of_the_spec_counts_and_not_that_of_the_environment(
    plane: PlaneServer, control: ControlPlane, endpoint: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca_file))

    assert control.get_endpoint(endpoint)


def test_calls_print_nothing(control: ControlPlane, endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    control.wait(control.delete_endpoint(endpoint))

    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (3, InputError),
        (4, Timeout),
        (8, QuotaExceeded),
        (9, PreconditionFailed),
        (13, ServerError),
        (14, NotReady),
    ],
)
def test_operation_ends_with_the_error_of_its_code(code: int, kind: type[MedportError]) -> None:
    assert type(operation_error({"code": code, "message": "m"}, "deploy")) is kind


def test_missing_quota_names_the_way_that_needs_one_fleet() -> None:
    message = "The following quota metrics exceed quota limits: aiplatform.googleapis.com/custom_model_serving_l4"

    error = operation_error({"code": 8, "message": message}, "deploy reader")

    assert "custom_model_serving_l4" in str(error)
    assert "strategy: recreate" in str(error)


def test_message_does_not_tell_a_token() -> None:
    assert clean("no: Bearer abc.def and ya29.secret_x\nand more") == "no: *** and *** and more"


@pytest.mark.parametrize(
    ("auth", "kind"),
    [
        ({"api_key_env": "NO_SUCH_VARIABLE"}, ConfigError),
        ({"credentials_file": "no/such.json"}, ConfigError),
        ({}, AuthError),
    ],
)
def test_missing_credential_is_told_before_any_call(
    auth: Json, kind: type[MedportError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    with pytest.raises(kind) as refused:
        control_credentials.of(Auth(**auth))

    assert refused.value.field == "target.auth"


class FakeTime:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.sleep)


def answers(*found: Json | Exception) -> Callable[[str], Json]:
    left = list(found)

    def get(name: str) -> Json:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return get


def staged(stage: str) -> Json:
    return {"name": "o", "metadata": {"deploymentStage": stage}}


DONE = {"name": "o", "done": True, "response": {"x": 1}}


def test_each_stage_is_told_once() -> None:
    told: list[str] = []
    get = answers(staged("A"), staged("A"), staged("B"), DONE)

    ended = Polling(clock=FakeTime().clock).wait(
        get, {"name": "o"}, doing="d", deadline_s=100, on_stage=told.append
    )

    assert told == ["A", "B"]
    assert ended == DONE


def test_polls_get_rarer_up_to_a_limit() -> None:
    time_, asked = FakeTime(), []

    def get(name: str) -> Json:
        asked.append(time_.now)
        return DONE if time_.now > 300 else {"name": "o"}

    Polling(clock=time_.clock).wait(get, {"name": "o"}, doing="d", deadline_s=1000)

    gaps = [b - a for a, b in itertools.pairwise(asked)]
    assert max(gaps[:2]) < 1
    assert 5 <= min(gaps[-10:]) <= max(gaps[-10:]) <= 10.1


def test_long_silence_ends_the_wait() -> None:
    time_ = FakeTime()

    with pytest.raises(ConnectionFailed, match="has not answered for 300 s"):
        Polling(clock=time_.clock).wait(answers(ServerError("x")), {"name": "o"}, doing="d", deadline_s=7200)

    assert 300 < time_.now < 320


def test_operation_may_be_unknown_at_first() -> None:
    get = answers(NotFound("x"), NotFound("x"), DONE)

    assert Polling(clock=FakeTime().clock).wait(get, {"name": "o"}, doing="d", deadline_s=100) == DONE


def test_operation_that_stays_unknown_ends_the_wait() -> None:
    with pytest.raises(NotFound, match="the operation goes on: o"):
        Polling(clock=FakeTime().clock).wait(answers(NotFound("x")), {"name": "o"}, doing="d", deadline_s=100)


def test_caller_who_leaves_is_told_what_goes_on() -> None:
    with pytest.raises(StillRunning, match="wait for o"):
        Polling(clock=FakeTime().clock).wait(
            answers({"name": "o"}), {"name": "o"}, doing="d", deadline_s=100, leave=lambda: True
        )


def test_operation_that_is_done_is_not_polled() -> None:
    began = time.monotonic()

    assert Polling().wait(answers(AssertionError()), DONE, doing="d", deadline_s=100) == DONE
    assert time.monotonic() - began < 60


def test_names_of_two_deployments_never_meet() -> None:
    pairs = [("a-b", "c"), ("a", "b-c"), ("a.b", "c"), ("a_b", "c"), ("a--b", "c"), ("a", "b--c"), ("x" * 70, "c")]

    made = {names.endpoint_id(*pair) for pair in pairs}

    assert len(made) == len(pairs)
    assert all(len(each) <= 63 for each in made)


def test_deployed_models_id_belongs_to_lock_model_and_attempt() -> None:
    one, two = deploying.lock_id("one"), deploying.lock_id("two")

    made = [
        names.deployed_model_id(one, "chest", "reader"),
        names.deployed_model_id(two, "chest", "reader"),
        names.deployed_model_id(one, "chest", "other"),
        names.deployed_model_id(one, "chest", "reader", attempt=1),
    ]

    assert len(set(made)) == 4
    assert made[0] == names.deployed_model_id(one, "chest", "reader")
    assert all(len(each) == 10 and each.isdigit() for each in made)


@pytest.mark.parametrize(
    ("split", "gone", "others", "left"),
    [
        ({"1": 100}, "1", [], None),
        ({"1": 100}, "2", ["1"], None),
        ({"1": 90, "2": 10}, "2", ["1"], {"1": 100}),
        ({"1": 40, "2": 20, "3": 40}, "3", ["1", "2"], {"1": 67, "2": 33}),
        ({"1": 100}, "1", ["2", "3"], {"2": 100}),
    ],
)
def test_traffic_of_a_model_that_goes_is_shared_out(
    split: dict[str, int], gone: str, others: list[str], left: dict[str, int] | None
) -> None:
    assert split_math.without(split, gone, others) == left


@pytest.mark.parametrize(
    ("split", "share", "asked"),
    [
        ({}, 0, {"0": 100}),
        ({"1": 100}, 0, {"1": 100, "0": 0}),
        ({"1": 50, "2": 50}, 5, {"1": 48, "2": 47, "0": 5}),
    ],
)
def test_new_model_gets_its_share_of_what_the_others_have(
    split: dict[str, int], share: int, asked: dict[str, int]
) -> None:
    assert split_math.with_new(split, share) == asked
