"""Faults on purpose: which calls a rule meets, how often, and with what."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from medport.errors import InputError, MedportError, NotFound, NotReady, PreconditionFailed, QuotaExceeded, row_of
from medport_local.control.asks import Ask, Row
from medport_local.control.faults import MAX_RULES, DoorFault, Faults
from medport_local.control.host import Intent

ENDPOINT = "/v1/projects/{project}/locations/{location}/endpoints/{endpoint}"
PREDICT = f"{ENDPOINT}:predict"


@pytest.fixture
def faults() -> Faults:
    return Faults()


def row(faults: Faults, operation: str) -> Row:
    return next(row for row in faults.rows() if row.operation == operation)


def call(faults: Faults, operation: str, body: dict[str, Any] | None = None, **path: str) -> dict[str, Any]:
    handler = row(faults, operation).handler

    async def work() -> dict[str, Any]:
        return await handler(Ask(api="v1", path=path, body=body or {}))

    return asyncio.run(work())


def rule(faults: Faults, **form: Any) -> str:
    made: str = call(faults, "createFault", form)["id"]
    return made


def door(
    faults: Faults,
    *,
    method: str = "POST",
    template: str = PREDICT,
    verb: str = "aiplatform.endpoints.predict",
    path: Mapping[str, str] | None = None,
) -> DoorFault | None:
    return faults.at_door(method, template, verb, {"endpoint": "reading-room"} if path is None else path)


def intent(endpoint: str = "reading-room", id_: str = "1") -> Intent:
    return Intent(
        endpoint=f"projects/1/locations/europe-west4/endpoints/{endpoint}",
        deployed_model_id=id_,
        model="projects/1/locations/europe-west4/models/m",
        model_version_id="1",
        display_name="m",
    )


class TestCalls:
    def test_without_rules_nothing_is_met(self, faults: Faults) -> None:
        assert door(faults) is None
        assert faults.slow("createEndpoint") == 0.0
        faults.check_deploy(intent())

    def test_a_status_is_answered_in_googles_envelope(self, faults: Faults) -> None:
        rule(faults, http={"status": 503, "message": "Try again."})

        met = door(faults)

        assert met == DoorFault(
            503, {"error": {"code": 503, "message": "Try again.", "status": "UNAVAILABLE"}}, 0.0, None
        )

    def test_a_text_is_the_whole_body(self, faults: Faults) -> None:
        rule(faults, http={"status": 429, "text": "Model is not yet ready for inference.", "retryAfterSeconds": 5})

        met = door(faults)

        assert met == DoorFault(429, "Model is not yet ready for inference.", 0.0, 5)

    def test_a_200_may_hold_an_error_that_does_not_say_200(self, faults: Faults) -> None:
        rule(faults, http={"status": 200, "message": "no"})

        met = door(faults)

        assert met is not None
        assert met.status == 200
        assert met.body == {"error": {"code": 500, "message": "no", "status": "INTERNAL"}}

    def test_an_error_may_have_another_code_than_its_status_stands_for(self, faults: Faults) -> None:
        rule(faults, http={"status": 400, "rpc_status": "FAILED_PRECONDITION"})

        met = door(faults)

        assert met is not None
        assert isinstance(met.body, dict)
        assert met.body["error"]["status"] == "FAILED_PRECONDITION"

    def test_a_delay_alone_lets_the_call_go_on(self, faults: Faults) -> None:
        rule(faults, http={"delaySeconds": 1.5})

        met = door(faults)

        assert met is not None
        assert (met.status, met.delay_s) == (None, 1.5)

    def test_a_rule_for_two_calls_meets_two(self, faults: Faults) -> None:
        rule(faults, times=2, http={"status": 500})

        met = [door(faults) is not None for _ in range(4)]

        assert met == [True, True, False, False]

    def test_a_rule_without_times_meets_every_call_until_it_is_deleted(self, faults: Faults) -> None:
        made = rule(faults, http={"status": 500})
        before = [door(faults) is not None for _ in range(5)]

        call(faults, "deleteFault", fault=made)

        assert before == [True] * 5
        assert door(faults) is None

    def test_the_oldest_rule_that_fits_is_the_one_that_applies(self, faults: Faults) -> None:
        rule(faults, times=1, http={"status": 500})
        rule(faults, times=1, http={"status": 429})

        met = [found.status if (found := door(faults)) else None for _ in range(3)]

        assert met == [500, 429, None]

    @pytest.mark.parametrize(
        ("match", "meets"),
        [
            ({}, True),
            ({"method": "POST"}, True),
            ({"method": "GET"}, False),
            ({"path": "*:predict"}, True),
            ({"path": "/v1/*/endpoints/{endpoint}:predict"}, True),
            ({"path": "*:rawPredict"}, False),
            ({"verb": "aiplatform.endpoints.*"}, True),
            ({"verb": "aiplatform.models.*"}, False),
            ({"endpoint": "reading-room"}, True),
            ({"endpoint": "archive"}, False),
            ({"endpoint": "reading-room", "path": "*:explain"}, False),
        ],
    )
    def test_a_rule_meets_the_calls_that_fit_all_it_names(
        self, faults: Faults, match: dict[str, str], meets: bool
    ) -> None:
        rule(faults, match=match, http={"status": 500})

        met = door(faults)

        assert (met is not None) is meets

    def test_a_call_that_is_not_met_is_not_counted(self, faults: Faults) -> None:
        rule(faults, match={"endpoint": "archive"}, times=1, http={"status": 500})

        door(faults)

        assert call(faults, "listFaults")["faults"][0]["hits"] == 0

    @pytest.mark.parametrize("verb", ["medport.faults.delete", ""])
    def test_no_rule_meets_the_calls_that_take_rules_back(self, faults: Faults, verb: str) -> None:
        rule(faults, match={"path": "*"}, http={"status": 500})

        met = [
            door(faults, method=row.method, template=row.path, verb=row.verb, path={"fault": "1"})
            for row in faults.rows()
        ]

        assert met == [None] * len(faults.rows())


class TestWhatIsKnownLate:
    def test_a_rule_for_a_deployed_model_waits_for_who_answers(self, faults: Faults) -> None:
        rule(faults, match={"deployedModelId": "22"}, http={"status": 500})
        path = {"endpoint": "reading-room"}

        first = faults.at_door("POST", PREDICT, "", path)
        other = faults.at_answer("POST", PREDICT, "", path, "reading-room", "11")
        own = faults.at_answer("POST", PREDICT, "", path, "reading-room", "22")

        assert (first, other) == (None, None)
        assert own is not None

    def test_a_rule_that_was_decided_at_the_door_is_not_asked_again(self, faults: Faults) -> None:
        rule(faults, match={"endpoint": "reading-room"}, http={"delaySeconds": 1})
        path = {"endpoint": "reading-room"}

        met = [
            faults.at_door("POST", PREDICT, "", path),
            faults.at_answer("POST", PREDICT, "", path, "reading-room", "22"),
        ]

        assert [each is not None for each in met] == [True, False]

    def test_an_endpoint_that_a_body_names_is_met_after_the_handler(self, faults: Faults) -> None:
        rule(faults, match={"endpoint": "reading-room"}, http={"status": 500})

        met = [
            faults.at_door("POST", "/v1/chat/completions", "", {}),
            faults.at_answer("POST", "/v1/chat/completions", "", {}, "reading-room", "22"),
        ]

        assert [each is not None for each in met] == [False, True]

    def test_the_deployed_model_of_an_invoke_path_is_met_at_the_door(self, faults: Faults) -> None:
        rule(faults, match={"deployedModelId": "22"}, http={"status": 500})
        template = f"{ENDPOINT}/deployedModels/{{deployed_model}}/invoke/{{path:path}}"

        met = faults.at_door("POST", template, "", {"endpoint": "reading-room", "deployed_model": "22"})

        assert met is not None


class TestOperations:
    def test_operations_of_a_kind_are_held_up(self, faults: Faults) -> None:
        rule(faults, operation={"kind": "create*", "slowSeconds": 6}, times=1)

        seconds = [faults.slow(kind) for kind in ("uploadModel", "createEndpoint", "createEndpoint")]

        assert seconds == [0.0, 6.0, 0.0]

    @pytest.mark.parametrize(
        ("deploy", "kind", "status", "words"),
        [
            (
                {"failure": "quota"},
                QuotaExceeded,
                "RESOURCE_EXHAUSTED",
                "aiplatform.googleapis.com/custom_model_serving",
            ),
            ({"failure": "capacity"}, NotReady, "UNAVAILABLE", "Machine type temporarily unavailable"),
            ({"failure": "capacity", "code": 8}, QuotaExceeded, "RESOURCE_EXHAUSTED", "Machine type temporarily"),
            ({"failure": "failing_container"}, PreconditionFailed, "FAILED_PRECONDITION", "exited unexpectedly"),
            (
                {"failure": "quota", "message": "No L4 for you."},
                QuotaExceeded,
                "RESOURCE_EXHAUSTED",
                "No L4 for you.",
            ),
        ],
    )
    def test_a_deployment_fails_as_a_real_one_does(
        self, faults: Faults, deploy: dict[str, Any], kind: type[MedportError], status: str, words: str
    ) -> None:
        rule(faults, deploy=deploy)

        with pytest.raises(MedportError) as raised:
            faults.check_deploy(intent())

        assert type(raised.value) is kind
        assert row_of(raised.value).status == status
        assert words in str(raised.value)

    def test_only_the_endpoint_and_the_model_that_are_named_fail(self, faults: Faults) -> None:
        rule(faults, match={"endpoint": "archive", "deployedModelId": "7"}, deploy={"failure": "quota"})

        faults.check_deploy(intent("reading-room", "7"))
        faults.check_deploy(intent("archive", "8"))
        with pytest.raises(QuotaExceeded):
            faults.check_deploy(intent("archive", "7"))

    def test_a_rule_about_calls_does_not_touch_deployments_nor_the_other_way_round(self, faults: Faults) -> None:
        rule(faults, http={"status": 500})
        rule(faults, deploy={"failure": "quota"})
        rule(faults, operation={"slowSeconds": 1})

        met = door(faults)

        assert met is not None
        assert met.status == 500
        with pytest.raises(QuotaExceeded):
            faults.check_deploy(intent())
        assert faults.slow("anything") == 1.0


class TestRules:
    def test_a_rule_is_shown_as_it_was_given_with_its_hits(self, faults: Faults) -> None:
        rule(faults, match={"path": "*:predict"}, times=3, http={"status": 503, "delay_seconds": 0.5})
        door(faults)

        shown = call(faults, "listFaults")

        assert shown == {
            "faults": [
                {
                    "id": "1",
                    "match": {"path": "*:predict"},
                    "times": 3,
                    "http": {"status": 503, "delaySeconds": 0.5},
                    "hits": 1,
                    "left": 2,
                }
            ]
        }

    def test_all_rules_go_at_once(self, faults: Faults) -> None:
        rule(faults, http={"status": 500})
        rule(faults, deploy={"failure": "quota"})

        call(faults, "deleteFaults")

        assert call(faults, "listFaults") == {"faults": []}
        assert door(faults) is None

    def test_a_rule_that_is_not_there_cannot_be_deleted(self, faults: Faults) -> None:
        with pytest.raises(NotFound, match="there is no such fault"):
            call(faults, "deleteFault", fault="9")

    @pytest.mark.parametrize(
        ("form", "said"),
        [
            ({}, "exactly one of http, operation, deploy"),
            ({"http": {"status": 500}, "deploy": {"failure": "quota"}}, "exactly one of"),
            ({"http": {}}, "give a status, delaySeconds or both"),
            ({"http": {"status": 99}}, "fault.http.status"),
            ({"http": {"status": 302}}, "fault.http.status"),
            ({"http": {"status": 500, "delaySeconds": -1}}, "fault.http.delay_seconds"),
            ({"http": {"status": 500}, "times": 0}, "fault.times"),
            ({"http": {"status": 500}, "match": {"method": "TRACE"}}, "fault.match.method"),
            ({"http": {"status": 500}, "macht": {}}, "Unknown name \"macht\" at 'fault'"),
            ({"operation": {"slowSeconds": 1}, "match": {"endpoint": "e"}}, "operation.kind alone"),
            ({"operation": {"slowSeconds": 0}}, "fault.operation.slow_seconds"),
            ({"deploy": {"failure": "quota"}, "match": {"path": "*"}}, "endpoint and deployedModelId alone"),
            ({"deploy": {"failure": "quota", "code": 14}}, "only a capacity failure"),
            ({"deploy": {"failure": "boom"}}, "fault.deploy.failure"),
        ],
    )
    def test_a_rule_that_could_not_mean_what_it_says_is_refused(
        self, faults: Faults, form: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(InputError) as raised:
            rule(faults, **form)

        assert said in str(raised.value)
        assert call(faults, "listFaults") == {"faults": []}

    def test_spent_rules_make_room_for_others(self, faults: Faults) -> None:
        for _ in range(MAX_RULES - 1):
            rule(faults, http={"status": 500})
        spent = rule(faults, operation={"slowSeconds": 1}, times=1)
        faults.slow("createEndpoint")

        rule(faults, http={"status": 500})

        assert spent not in [each["id"] for each in call(faults, "listFaults")["faults"]]
        with pytest.raises(QuotaExceeded, match="delete some"):
            rule(faults, http={"status": 500})

    def test_of_many_calls_at_once_exactly_as_many_are_met_as_were_asked_for(self, faults: Faults) -> None:
        rule(faults, times=50, http={"status": 500})

        with ThreadPoolExecutor(8) as pool:
            met = list(pool.map(lambda _: door(faults) is not None, range(400)))

        assert sum(met) == 50
        assert call(faults, "listFaults")["faults"][0]["hits"] == 50

    def test_every_call_about_faults_has_a_permission_of_its_own(self, faults: Faults) -> None:
        verbs = {row.verb for row in faults.rows()}

        assert verbs == {"medport.faults.create", "medport.faults.list", "medport.faults.delete"}
