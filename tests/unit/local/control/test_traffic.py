"""Traffic splits: pure rules, and the laws that hold for all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport.errors import Conflict, InputError, PreconditionFailed
from medport_local.control import traffic

IDS = ("1", "2", "3", "4")


@st.composite
def splits(draw: st.DrawFn) -> dict[str, int]:
    """Splits that are kept: nothing, or shares above zero that add up to 100."""
    ids = draw(st.lists(st.sampled_from(IDS), unique=True))
    if not ids:
        return {}
    cuts = sorted(draw(st.sets(st.integers(1, 99), min_size=len(ids) - 1, max_size=len(ids) - 1)))
    return {id_: high - low for id_, low, high in zip(ids, [0, *cuts], [*cuts, 100], strict=True)}


def test_a_split_that_adds_up_to_100_is_kept_without_its_zeros() -> None:
    assert traffic.check({"1": 30, "2": 70, "3": 0}, IDS) == {"1": 30, "2": 70}


def test_an_empty_split_gives_no_model_traffic() -> None:
    assert traffic.check({}, IDS) == {}


@pytest.mark.parametrize("split", [{"1": 99}, {"1": 50, "2": 51}, {"1": 0}, {"1": 100, "2": 100}])
def test_a_split_that_does_not_add_up_to_100_is_refused(split: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"add up to {sum(split.values())}"):
        traffic.check(split, IDS)


@pytest.mark.parametrize("share", [-1, 101, True, 50.5, "50"])
def test_a_share_that_is_no_whole_percent_is_refused(share: int) -> None:
    with pytest.raises(InputError, match="whole percent"):
        traffic.check({"1": share, "2": 50}, IDS)


def test_a_share_for_a_model_that_is_not_deployed_is_refused_and_the_deployed_are_named() -> None:
    with pytest.raises(InputError, match=r"9 is not deployed here.*1, 2"):
        traffic.check({"9": 100}, ("2", "1"))


def test_zero_stands_for_the_new_model() -> None:
    assert traffic.asked_with_new({"0": 20, "1": 80}, "7", {"1"}, {"1": 100}) == {"7": 20, "1": 80}


def test_the_new_model_cannot_be_named_twice() -> None:
    with pytest.raises(InputError, match="named twice"):
        traffic.asked_with_new({"0": 20, "7": 80}, "7", set(), {})


def test_a_first_model_may_be_deployed_without_traffic() -> None:
    assert traffic.asked_with_new({"0": 0}, "7", set(), {}) == {}


def test_a_new_model_without_traffic_cannot_take_the_traffic_of_the_others_away() -> None:
    with pytest.raises(InputError, match="add up to 0"):
        traffic.asked_with_new({"0": 0}, "7", {"1"}, {"1": 100})


def test_without_a_split_the_first_model_takes_everything_and_a_later_one_nothing() -> None:
    assert traffic.with_new({}, "7", None, {}, alone=True) == {"7": 100}
    assert traffic.with_new({"1": 100}, "7", None, {}, alone=False) == {"1": 100}


def test_a_change_of_the_split_meanwhile_keeps_its_proportions() -> None:
    split = traffic.with_new({"1": 50, "2": 50}, "7", {"7": 20, "1": 80}, {"1": 100}, alone=False)

    assert split == {"7": 20, "1": 40, "2": 40}


def test_a_share_beside_models_that_lost_their_traffic_meanwhile_is_a_conflict() -> None:
    with pytest.raises(Conflict, match="lost their traffic"):
        traffic.with_new({}, "7", {"7": 20, "1": 80}, {"1": 100}, alone=False)


def test_all_of_the_traffic_can_be_taken_whatever_happened_meanwhile() -> None:
    assert traffic.with_new({}, "7", {"7": 100}, {"1": 100}, alone=False) == {"7": 100}


def test_a_model_that_goes_must_have_its_traffic_shared_out() -> None:
    with pytest.raises(PreconditionFailed, match="80 % of the traffic"):
        traffic.without({"1": 80, "2": 20}, "1", {}, {"2"})


def test_a_split_that_still_gives_traffic_to_the_model_that_goes_is_refused() -> None:
    with pytest.raises(PreconditionFailed, match="gives traffic to 1"):
        traffic.without({"1": 100}, "1", {"1": 100}, {"2"})


def test_the_last_model_takes_its_traffic_with_it() -> None:
    assert traffic.without({"1": 100}, "1", {}, set()) == {}


def test_a_model_without_traffic_goes_and_the_split_stays() -> None:
    assert traffic.without({"2": 100}, "1", {}, {"2"}) == {"2": 100}


@given(splits(), splits(), splits())
def test_whatever_happened_meanwhile_the_split_adds_up_and_the_new_model_has_what_was_asked_for(
    present: dict[str, int], asked: dict[str, int], against: dict[str, int]
) -> None:
    asked = {("9" if id_ == "4" else id_): share for id_, share in asked.items()}
    present.pop("9", None)

    try:
        split = traffic.with_new(present, "9", asked, against, alone=False)
    except Conflict:
        assert not present
        return

    assert sum(split.values()) in (0, 100)
    assert all(split.values())
    assert split.get("9", 0) == asked.get("9", 0)


@given(splits())
def test_scaled_shares_differ_from_the_exact_ones_by_less_than_one(present: dict[str, int]) -> None:
    split = traffic.with_new(present, "9", {"9": 33, "1": 67}, {"1": 99}, alone=False) if present else {}

    for id_, share in present.items():
        assert abs(split.get(id_, 0) - share * 0.67) < 1


@given(splits(), st.sampled_from(IDS))
def test_who_takes_a_place_takes_its_share(present: dict[str, int], old: str) -> None:
    split = traffic.handed_over(present, old, "9")

    assert split.get("9", 0) == present.get(old, 0)
    assert sum(split.values()) == sum(present.values())
    assert old not in split
