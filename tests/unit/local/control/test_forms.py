"""Bodies of calls: what is taken, in whose words it is refused, and how it is kept."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport.errors import InputError
from medport_local.control import labels
from medport_local.control.forms import Answered, Double, Duration, Flag, Form, Int32, Int64, Text, read, written


class Part(Form):
    part_name: Text
    port: Int32 = 0


class Whole(Form):
    display_name: Text = ""
    parts: tuple[Part, ...] = ()
    labels: dict[str, Text] | None = None
    memory_size_mb: Int64 = "0"
    time_limit: Duration = ""
    sampling_rate: Double = 0.0
    is_on: Flag = False
    create_time: Answered


def test_camel_and_snake_case_are_taken_and_camel_case_is_kept() -> None:
    form = read(Whole, {"display_name": "a", "memorySizeMb": 3, "parts": [{"part_name": "b", "port": "7"}]})

    assert written(form) == {"displayName": "a", "memorySizeMb": "3", "parts": [{"partName": "b", "port": 7}]}


def test_defaults_and_null_and_what_only_answers_have_are_not_kept() -> None:
    body = {"displayName": "", "isOn": False, "labels": None, "createTime": "2026", "samplingRate": 0.0}

    assert written(read(Whole, body)) == {}


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        ("600s", "600s"),
        ("0.5s", "0.5s"),
        ("1.500s", "1.5s"),
        ({"seconds": 600}, "600s"),
        ({"seconds": "600", "nanos": 5}, "600.000000005s"),
        ({}, "0s"),
        ("-3s", "-3s"),
    ],
)
def test_durations_are_kept_as_seconds(given_: object, kept: str) -> None:
    assert read(Whole, {"timeLimit": given_}).time_limit == kept


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"colour": 1}, "Invalid JSON payload received. Unknown name \"colour\" at 'model': Cannot find field."),
        (
            {"colour": None},
            "Invalid JSON payload received. Unknown name \"colour\" at 'model': Cannot find field.",
        ),
        (
            {"parts": [{"partName": "a"}, {"partName": "b", "x": 1}]},
            "Invalid JSON payload received. Unknown name \"x\" at 'model.parts[1]': Cannot find field.",
        ),
        ({"parts": [{}]}, "'model.parts[0].part_name' is required (give it)"),
        ({"parts": [{"partName": "a", "port": 2**31}]}, "Invalid value at 'model.parts[0].port'"),
        ({"parts": {"partName": "a"}}, "Invalid value at 'model.parts'"),
        ({"displayName": 3}, "Invalid value at 'model.display_name'"),
        ({"displayName": "a", "display_name": "b"}, "Invalid value at 'model': display_name is given twice"),
        ({"memorySizeMb": 2**63}, "Invalid value at 'model.memory_size_mb': does not fit into 64 bits"),
        ({"memorySizeMb": "3.5"}, "Invalid value at 'model.memory_size_mb': is not a whole number"),
        ({"memorySizeMb": True}, "Invalid value at 'model.memory_size_mb': is not a whole number"),
        ({"isOn": "yes"}, "Invalid value at 'model.is_on'"),
        ({"samplingRate": "a"}, "Invalid value at 'model.sampling_rate': is not a number"),
        ({"timeLimit": "10m"}, "Invalid value at 'model.time_limit': is not a duration"),
        ({"timeLimit": "999999999999s"}, "Invalid value at 'model.time_limit': is longer than 10000 years"),
        ({"labels": {"a": 1}}, "Invalid value at 'model.labels.a'"),
        (["a"], "Invalid value at 'model'"),
    ],
)
def test_what_is_wrong_is_named_in_googles_words(body: Any, said: str) -> None:
    with pytest.raises(InputError) as refused:
        read(Whole, body, "model")

    assert str(refused.value).startswith(said)


def test_a_body_of_its_own_names_no_place() -> None:
    with pytest.raises(InputError) as refused:
        read(Whole, {"colour": 1})

    assert str(refused.value) == 'Invalid JSON payload received. Unknown name "colour": Cannot find field.'


def test_a_body_nested_too_deep_to_be_written_again_is_refused() -> None:
    deep: Any = {}
    for _ in range(2000):
        deep = {"a": deep}

    with pytest.raises(InputError, match="nested"):
        read(Whole, {"createTime": deep})


def test_a_refusal_does_not_repeat_the_value() -> None:
    with pytest.raises(InputError) as refused:
        read(Whole, {"memorySizeMb": "hunter2", "parts": "hunter2", "displayName": ["hunter2"]})

    assert "hunter2" not in str(refused.value)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "displayName": st.text(),
            "labels": st.dictionaries(st.text(), st.text()),
            "memorySizeMb": st.integers(-(2**63), 2**63 - 1),
            "samplingRate": st.floats(allow_nan=False, allow_infinity=False),
            "timeLimit": st.builds(
                lambda s, n: {"seconds": s, "nanos": n}, st.integers(0, 10**9), st.integers(0, 10**9 - 1)
            ),
            "parts": st.lists(st.builds(lambda n, p: {"partName": n, "port": p}, st.text(), st.integers(0, 9))),
        },
    )
)
def test_what_is_kept_reads_as_the_same(body: dict[str, Any]) -> None:
    form = read(Whole, body)

    assert read(Whole, written(form)) == form
    assert written(read(Whole, written(form))) == written(form)


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"": "v"}, "key ''"),
        ({"1a": "v"}, "1a"),
        ({"Äa": "v"}, "Äa"),
        ({"a.b": "v"}, "a.b"),
        ({"k" * 64: "v"}, "kkk"),
        ({"team": "v" * 64}, "team"),
        ({"team": "V"}, "team"),
        ({f"k{number}": "" for number in range(65)}, "65 labels"),
    ],
)
def test_the_label_that_breaks_a_rule_is_named(given_: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        labels.check(given_)


def test_labels_at_the_limits_and_googles_own_are_taken() -> None:
    labels.check({"k" * 63: "v" * 63, "goog-terraform-provisioned": "true", "empty": "", "a_-1": "1_-a"})
    labels.check({f"k{number}": "" for number in range(64)})
