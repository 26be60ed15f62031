"""MedGemma's "dicom" container: image sources, lists, patches, series, and errors inside a 200."""

from __future__ import annotations

from typing import Any

import pytest
from support.dicomweb import pydicom_file
from support.wire import Endpoint, b64, data_url, picture, png, said, text

BUCKET = "phantoms"


def user(*parts: object, **options: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 10, **options}


WORDS = {"type": "text", "text": "Describe."}


def tokens(answer: dict[str, Any]) -> int:
    count: int = answer["usage"]["prompt_tokens"]
    return count


def test_bare_body(dicom: Endpoint) -> None:
    """A bare request by `:rawPredict`: a chat.completion, `model` is "placeholder"."""
    answer = dicom.post(":rawPredict", user(WORDS)).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "placeholder"
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}


def test_one_instance_is_an_object(dicom: Endpoint) -> None:
    """One instance: `predictions` is an object."""
    assert said(dicom.predict(user(WORDS))) == said(dicom.post(":rawPredict", user(WORDS)).json())


def test_several_instances_are_a_list(dicom: Endpoint) -> None:
    """Two or more: a list, in order."""
    one, two = dicom.predict(user(WORDS), user({"type": "text", "text": "Is it clear?"}))
    assert said(one) == said(dicom.predict(user(WORDS)))
    assert said(two) == said(dicom.predict(user({"type": "text", "text": "Is it clear?"})))


def test_no_instances_are_an_empty_list(dicom: Endpoint) -> None:
    """`instances: []` gives `predictions: []`."""
    assert dicom.predict() == []


def test_own_chat_path(dicom: Endpoint) -> None:
    """`/v1/chat/completions` of the container, by `/invoke`."""
    answer = dicom.post("/invoke/v1/chat/completions", user(WORDS)).json()
    assert answer["object"] == "chat.completion"


def test_request_format(dicom: Endpoint) -> None:
    """`@requestFormat` may be there, and is chatCompletions."""
    assert said(dicom.predict({"@requestFormat": "chatCompletions", **user(WORDS)}))


def test_default_max_tokens_is_500(dicom: Endpoint) -> None:
    """Without `max_tokens`, 500."""
    request = user(WORDS, ignore_eos=True)
    del request["max_tokens"]
    assert dicom.predict(request)["usage"]["completion_tokens"] == 500


def test_max_tokens_as_double(dicom: Endpoint) -> None:
    """`max_tokens` 8.0, as Google's generated client writes it."""
    assert dicom.predict(user(WORDS, max_tokens=8.0, ignore_eos=True))["usage"]["completion_tokens"] == 8


def test_n(dicom: Endpoint) -> None:
    """`n` choices."""
    answer = dicom.predict(user(WORDS, n=2, temperature=1.2, seed=1))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]


def test_image_url(dicom: Endpoint, files: str) -> None:
    """`image_url`: a `data:` URL and an http(s) URL of the same picture give the same."""
    inline = dicom.predict(user(picture(data_url(png(seed=1))), WORDS))
    assert tokens(inline) > tokens(dicom.predict(user(WORDS)))
    assert said(dicom.predict(user(picture(f"{files}/a.png"), WORDS))) == said(inline)


def test_image_url_list(dicom: Endpoint) -> None:
    """`image_url.url` may be a list: that many images."""
    both = {"type": "image_url", "image_url": {"url": [data_url(png(seed=1)), data_url(png(seed=2))]}}
    parts = [picture(data_url(png(seed=1))), picture(data_url(png(seed=2)))]
    listed, apart = dicom.predict(user(both, WORDS)), dicom.predict(user(*parts, WORDS))
    assert (tokens(listed), said(listed)) == (tokens(apart), said(apart))


def test_image_old_spelling(dicom: Endpoint) -> None:
    """`{"type": "image", "image": URL}`, as transformers' templates have it."""
    old = {"type": "image", "image": data_url(png(seed=1))}
    assert said(dicom.predict(user(old, WORDS))) == said(
        dicom.predict(user(picture(data_url(png(seed=1))), WORDS))
    )


def test_image_bytes(dicom: Endpoint) -> None:
    """`image_bytes.input_bytes`: base64 of a file."""
    by_value = {"type": "image_bytes", "image_bytes": {"input_bytes": b64(png(seed=1))}}
    inline = dicom.predict(user(picture(data_url(png(seed=1))), WORDS))
    assert said(dicom.predict(user(by_value, WORDS))) == said(inline)


def test_image_bytes_of_dicom(dicom: Endpoint, ct_object: bytes) -> None:
    """`image_bytes` of a DICOM object."""
    by_value = {"type": "image_bytes", "image_bytes": {"input_bytes": b64(ct_object)}}
    assert said(dicom.predict(user(by_value, WORDS)))


@pytest.mark.parametrize("key", ["gcs_source", "gcs_uri"])
def test_image_gcs(dicom: Endpoint, key: str) -> None:
    """`image_gcs.gcs_source`, formerly `gcs_uri`."""
    stored = {"type": "image_gcs", "image_gcs": {key: f"gs://{BUCKET}/a.png"}}
    inline = dicom.predict(user(picture(data_url(png(seed=1))), WORDS))
    assert said(dicom.predict(user(stored, WORDS))) == said(inline)


def test_image_gcs_list(dicom: Endpoint) -> None:
    """`image_gcs.gcs_source` may be a list."""
    stored = {"type": "image_gcs", "image_gcs": {"gcs_source": [f"gs://{BUCKET}/a.png", f"gs://{BUCKET}/b.png"]}}
    inline = user(picture(data_url(png(seed=1))), picture(data_url(png(seed=2))), WORDS)
    assert said(dicom.predict(user(stored, WORDS))) == said(dicom.predict(inline))


@pytest.mark.parametrize("key", ["dicom_source", "dicomweb_uri"])
def test_image_dicom_instance(dicom: Endpoint, store: tuple[str, list[str]], key: str) -> None:
    """`image_dicom.dicom_source`, formerly `dicomweb_uri`: one instance, one image."""
    part = {"type": "image_dicom", "image_dicom": {key: store[1][0]}}
    answer = dicom.predict(user(part, WORDS))
    one = dicom.predict(user(picture(data_url(png())), WORDS))
    assert tokens(answer) == tokens(one)


def test_image_dicom_series(dicom: Endpoint, store: tuple[str, list[str]]) -> None:
    """A series: its slices by position, "SLICE n" after each, through the three CT windows."""
    series, instances = store
    whole = dicom.predict(user({"type": "image_dicom", "image_dicom": {"dicom_source": series}}, WORDS))
    listed = dicom.predict(user({"type": "image_dicom", "image_dicom": {"dicom_source": instances}}, WORDS))
    parts: list[object] = []
    for i, instance in enumerate(instances, start=1):
        parts += [
            {"type": "image_dicom", "image_dicom": {"dicom_source": instance}},
            {"type": "text", "text": f"SLICE {i}"},
        ]
    by_hand = dicom.predict(user(*parts, WORDS))

    assert tokens(whole) == tokens(listed) == tokens(by_hand)
    assert said(whole) == said(listed) == said(by_hand)


def test_patches(dicom: Endpoint) -> None:
    """`patch_coordinates_list`: one image for each patch, of the size asked for."""
    corners = [{"x_origin": 0, "y_origin": 0, "width": 32, "height": 32}, {"x_origin": 32.0, "y_origin": 32.0,
               "width": 32, "height": 32}]  # fmt: skip
    part = {"type": "image_bytes", "image_bytes": {"input_bytes": b64(png(64)), "patch_coordinates_list": corners}}
    two = dicom.predict(user(picture(data_url(png(seed=1))), picture(data_url(png(seed=2))), WORDS))
    assert tokens(dicom.predict(user(part, WORDS))) == tokens(two)


def test_schema_violation_is_a_string_under_200(dicom: Endpoint) -> None:
    """A request that breaks the schema: 200 and `error` as a string that names the field."""
    for request, field in (
        ({"messages": []}, "messages"),
        (user(WORDS, stream=True), "stream"),
        (user(WORDS, tools=[]), "tools"),
        (user(WORDS, response_format={"type": "json_object"}), "response_format"),
        (user({"type": "image_url", "image_url": {"url": "gs://b/o.png"}}), "url"),
        (user({"type": "image_dicom", "image_dicom": {"dicom_source": "https://h/x"}}), "dicom_source"),
        ({"prompt": "x"}, "messages"),
    ):
        for answer in (dicom.post(":rawPredict", request), dicom.post(":predict", {"instances": [request]})):
            assert answer.status_code == 200
            assert isinstance(answer.json()["error"], str)
            assert field in answer.json()["error"]
            assert "predictions" not in answer.json()


def test_data_error_is_an_object_under_200(dicom: Endpoint) -> None:
    """Data that cannot be used: 200 and `error` as an object, in `predictions` if there were instances."""
    request = user({"type": "image_bytes", "image_bytes": {"input_bytes": b64(b"no image")}}, WORDS)
    raw = dicom.post(":rawPredict", request)
    wrapped = dicom.post(":predict", {"instances": [request]})

    for answer in (raw.json(), wrapped.json()["predictions"]):
        assert answer["error"]["object"] == "error"
        assert len(answer["error"]["message"]) <= 1024
    assert raw.status_code == wrapped.status_code == 200


def test_data_error_of_one_instance_leaves_the_others(dicom: Endpoint) -> None:
    """One instance's error stands in its place in the list."""
    bad = user({"type": "image_bytes", "image_bytes": {"input_bytes": b64(b"no image")}}, WORDS)
    first, second = dicom.predict(bad, user(WORDS))
    assert first["error"]["object"] == "error"
    assert said(second)


def test_fetching_what_is_not_allowed_is_a_data_error(dicom: Endpoint) -> None:
    """A host that is not allowed is an error of the data."""
    part = {"type": "image_dicom", "image_dicom": {"dicom_source": "https://example.org/studies/1/series/2"}}
    answer = dicom.predict(user(part, WORDS))
    assert "--allow-fetch" in answer["error"]["message"] or "example.org" in answer["error"]["message"]


def test_no_json_is_400(dicom: Endpoint) -> None:
    """A body that is no JSON: 400 `{"error": "No JSON body."}`."""
    answer = dicom.http.post(f"{dicom.path}:rawPredict", content=b"x")
    assert (answer.status_code, answer.json()) == (400, {"error": "No JSON body."})


def test_container_health(dicom: Endpoint) -> None:
    """Health: 200 `ok`."""
    answer = dicom.http.get(f"{dicom.path}/invoke/health")
    assert (answer.status_code, answer.text) == (200, "ok")


def test_system_message(dicom: Endpoint) -> None:
    """A system message of text parts is part of the prompt."""
    request = user(WORDS)
    request["messages"] = [
        {"role": "system", "content": [{"type": "text", "text": "You are a radiologist."}]},
        *request["messages"],
    ]
    assert tokens(dicom.predict(request)) > tokens(dicom.predict(user(WORDS)))


def test_dialects_agree(dicom: Endpoint, gemma: Endpoint) -> None:
    """The same chat has the same answer at both containers' endpoints."""
    assert said(dicom.predict(user(WORDS))) == said(gemma.predict(text([WORDS], max_tokens=10)))


def test_mr_is_shown_over_the_volume(dicom: Endpoint) -> None:
    """MR: one object alone is accepted, by its own range."""
    part = {"type": "image_bytes", "image_bytes": {"input_bytes": b64(pydicom_file("MR_small.dcm"))}}
    assert said(dicom.predict(user(part, WORDS)))
