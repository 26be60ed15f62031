"""Names of permissions: which action allows each, and what a pattern stands for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport.errors import ConfigError
from medport_local.serving import verbs
from medport_local.serving.verbs import VERBS, action_of, covers, is_pattern


@pytest.mark.parametrize(
    ("verb", "action"),
    [
        ("aiplatform.endpoints.predict", "infer"),
        ("aiplatform.endpoints.explain", "infer"),
        ("aiplatform.batchPredictionJobs.create", "infer"),
        ("aiplatform.batchPredictionJobs.delete", "infer"),
        ("aiplatform.endpoints.get", "read"),
        ("aiplatform.models.list", "read"),
        ("aiplatform.operations.wait", "read"),
        ("aiplatform.modelGardenEula.check", "read"),
        ("", "read"),
        ("aiplatform.endpoints.deploy", "deploy"),
        ("aiplatform.endpoints.undeploy", "deploy"),
        ("aiplatform.models.upload", "deploy"),
        ("aiplatform.models.export", "deploy"),
        ("aiplatform.operations.cancel", "deploy"),
        ("aiplatform.modelGardenEula.accept", "deploy"),
        ("medport.faults.create", "admin"),
        ("medport.faults.list", "admin"),
    ],
)
def test_verb_belongs_to_the_action_that_its_effect_has(verb: str, action: str) -> None:
    assert action_of(verb) == action


@given(st.from_regex(r"\A[a-z]{1,9}\.[A-Za-z]{1,9}\.[a-z]{1,9}\Z"))
def test_verb_that_nobody_knows_is_never_mere_reading_unless_its_word_is(verb: str) -> None:
    word = verb.rpartition(".")[2]

    assert action_of(verb) != "read" or word in {"get", "list", "wait", "check", "recommend"}


@given(st.sampled_from(sorted(VERBS)), st.sampled_from(sorted(VERBS)))
def test_pattern_stands_for_its_own_resource_and_no_other(pattern: str, verb: str) -> None:
    resource = pattern.rpartition(".")[0]

    assert covers(pattern, verb) == (pattern == verb)
    assert covers(f"{resource}.*", verb) == (verb.rpartition(".")[0] == resource)


def test_no_pattern_stands_for_a_call_without_a_verb() -> None:
    assert not covers("", "")
    assert not covers(".*", "")


@pytest.mark.parametrize(
    "text", ["aiplatform.*", "*", "aiplatform.endpoints", "aiplatform.endpoints.de*", "", "a.b.c\n"]
)
def test_pattern_that_is_wider_than_one_resource_has_no_form(text: str) -> None:
    assert not is_pattern(text)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("aiplatform.endpoint.deploy", "aiplatform.endpoints.deploy"),
        ("aiplatform.model.*", "aiplatform.models."),
    ],
)
def test_misspelt_verb_is_refused_with_the_one_that_was_meant(misspelt: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="no permission") as refused:
        verbs.check_known([misspelt])

    assert meant in str(refused.value.remedy)
