"""What a handler is asked to ask: a key's endpoints, in paths, lists and answers."""

from __future__ import annotations

import httpx
import pytest
from support.door_handlers import CLOSED


def test_path_that_names_an_endpoint_is_for_the_keys_of_that_endpoint(narrow: httpx.Client) -> None:
    assert narrow.get("/endpoints/medgemma").status_code == 200

    refused = narrow.get("/endpoints/medsiglip")

    assert refused.status_code == 403
    assert refused.json()["error"]["status"] == "PERMISSION_DENIED"
    assert "medsiglip" not in refused.text


@pytest.mark.parametrize("path", ["/endpoints/MEDGEMMA", "/endpoints/medgemma%00", "/endpoints/medgemma%20"])
def test_name_that_is_almost_right_is_not_right(narrow: httpx.Client, path: str) -> None:
    assert narrow.get(path).status_code == 403


def test_list_leaves_out_what_the_key_is_not_for(narrow: httpx.Client, wide: httpx.Client) -> None:
    assert narrow.get("/list").json() == ["medgemma"]
    assert wide.get("/list").json() == ["medgemma", "medsiglip"]


def test_answer_of_a_handler_that_forgot_to_ask_is_kept_back(
    wide: httpx.Client, narrow: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    for client in (wide, narrow):
        answer = client.get("/forgetful")
        assert answer.status_code == 500
        assert "CANARY" not in answer.text
    assert "/forgetful answers without asking" in caplog.text


def test_stream_of_a_handler_that_forgot_to_ask_is_kept_back_and_closed(wide: httpx.Client) -> None:
    CLOSED.clear()

    answer = wide.get("/forgetful-stream")

    assert answer.status_code == 500
    assert "CANARY" not in answer.text
    assert CLOSED == [True]
