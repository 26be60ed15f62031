"""What a principal may do: actions, single verbs, endpoints; and how a refusal reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport.errors import Forbidden
from medport_local.serving.identity import ANYONE, Principal, resource_in
from medport_local.serving.verbs import ACTIONS, VERBS

ENDPOINT = "projects/p/locations/europe-west4/endpoints/chest"


def principal(*actions: str, verbs: tuple[str, ...] = (), models: frozenset[str] | None = None) -> Principal:
    return Principal(name="ci", actions=frozenset(actions), verbs=verbs, models=models)


CHEST = frozenset({"chest"})


def allowed(who: Principal, verb: str, endpoint: str | None = None) -> bool:
    try:
        who.check(VERBS[verb], verb, endpoint=endpoint)
    except Forbidden:
        return False
    return True


def test_verb_alone_allows_that_call_and_no_other_of_its_action() -> None:
    who = principal(verbs=("aiplatform.endpoints.deploy",))

    assert {verb for verb in VERBS if allowed(who, verb, "chest")} == {"aiplatform.endpoints.deploy"}


def test_action_allows_all_of_its_verbs_and_none_of_another() -> None:
    for action in ACTIONS:
        assert {verb for verb in VERBS if allowed(principal(action), verb)} == {
            verb for verb, of in VERBS.items() if of == action
        }


def test_key_for_an_endpoint_deploys_there_and_nowhere_else() -> None:
    who = principal("deploy", "infer", models=CHEST)

    assert allowed(who, "aiplatform.endpoints.deploy", "chest")
    assert allowed(who, "aiplatform.endpoints.delete", "chest")
    assert not allowed(who, "aiplatform.endpoints.deploy", "abdomen")
    assert not allowed(who, "aiplatform.endpoints.predict", "abdomen")


@pytest.mark.parametrize(
    "verb", ["aiplatform.models.upload", "aiplatform.models.delete", "aiplatform.endpoints.create",
             "aiplatform.modelGarden.deploy", "aiplatform.modelGardenEula.accept", "aiplatform.operations.cancel"]
)  # fmt: skip
def test_key_for_an_endpoint_changes_the_project_only_by_a_verb_in_full(verb: str) -> None:
    wide = verb.rpartition(".")[0] + ".*"

    assert not allowed(principal("deploy", "admin", models=CHEST), verb)
    assert not allowed(principal("deploy", verbs=(wide,), models=CHEST), verb)
    assert allowed(principal(verbs=(verb,), models=CHEST), verb)
    assert allowed(principal("deploy"), verb)


def test_key_for_an_endpoint_sets_no_faults() -> None:
    assert not allowed(principal("admin", models=CHEST), "medport.faults.create")
    assert allowed(principal("admin"), "medport.faults.create")


def test_key_for_an_endpoint_may_look_at_lists_which_leave_out_the_rest() -> None:
    who = principal("read", models=CHEST)

    assert allowed(who, "aiplatform.endpoints.list")
    assert (who.may("chest"), who.may("abdomen")) == (True, False)


def test_anyone_may_do_everything_where_there_are_no_keys() -> None:
    assert all(allowed(ANYONE, verb) for verb in VERBS)


def test_refusal_has_googles_words_and_our_remedy() -> None:
    with pytest.raises(Forbidden) as refused:
        principal("read").check("deploy", "aiplatform.endpoints.deploy", endpoint="chest", resource=ENDPOINT)

    assert refused.value.message == (
        f"Permission 'aiplatform.endpoints.deploy' denied on resource '//aiplatform.googleapis.com/{ENDPOINT}' "
        "(or it may not exist)."
    )
    assert "the action deploy or the verb aiplatform.endpoints.deploy" in str(refused.value.remedy)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"/v1/{ENDPOINT}:deployModel", ENDPOINT),
        (f"/v1beta1/{ENDPOINT}", ENDPOINT),
        ("/v1/projects/p/locations/l/endpoints", "projects/p/locations/l"),
        ("/v1/projects/p/locations/l/models:upload", "projects/p/locations/l"),
        ("/v1/projects/p/locations/l/models/m@2:mergeVersionAliases", "projects/p/locations/l/models/m@2"),
        ("/v1beta1/projects/p/modelGardenEula:accept", "projects/p"),
        ("/ui/projects/p/locations/l/operations/1", "projects/p/locations/l/operations/1"),
        ("/medport/v1/faults", ""),
        ("/v1/projects/a b/locations/l", ""),
        ("/v1/projects/<script>/locations/l", ""),
        ("/v1/projects/" + "x" * 129 + "/locations/l", ""),
        ("", ""),
    ],
)
def test_resource_is_read_from_a_path_only_if_it_has_the_form_of_a_name(path: str, name: str) -> None:
    assert resource_in(path) == name


@given(st.text(max_size=60))
def test_path_of_any_text_gives_nothing_but_a_name(text: str) -> None:
    name = resource_in(f"/v1/{text}")

    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@*-/")
    assert not name or len(name.split("/")) % 2 == 0
