"""Attacks on the server that no other file names: many from one, links between processes, leaks between users.

Doors and keys are attacked in ``door`` and ``test_guard``, addresses in ``fetch/test_ssrf``, grammars in
``test_grammar``, prompts in ``test_prompt``, decoders in ``tests/unit/images``.
"""

from __future__ import annotations

import base64
import io
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import medport_local
from medport_local import inprocess
from medport_local.app import Settings
from medport_local.engine.engine import EngineLimits, TorchEngine
from medport_local.engine.scheduler import Batch

ROOT = "/v1/projects/local/locations/europe-west4/endpoints"


@pytest.fixture(scope="module")
def server(gemma_folder: Path, siglip_folder: Path) -> Iterator[inprocess.Server]:
    settings = Settings(
        snapshots={"medgemma": gemma_folder, "medsiglip": siglip_folder},
        advertised="gpu01:8443",
        engine_limits=EngineLimits(max_running=2, max_queue=2, max_images=3),
        drain_s=1.0,
    )
    running = inprocess.Server(settings, socket.create_server(("127.0.0.1", 0)), None)
    running.wait_until_ready()
    with running:
        yield running


@pytest.fixture
def http(server: inprocess.Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base_url, timeout=30) as client:
        yield client


@pytest.fixture
def engine(server: inprocess.Server) -> TorchEngine:
    assert server.app is not None
    found: TorchEngine = server.app.state.engines["medgemma"]
    return found


def chat(content: object = "hello", **options: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 5, **options}


def image(data: bytes, kind: str = "png") -> dict[str, Any]:
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def predict(http: httpx.Client, *instances: object, endpoint: str = "medgemma") -> httpx.Response:
    return http.post(f"{ROOT}/{endpoint}:predict", json={"instances": list(instances)})


def test_attack_3_a_million_answers_are_refused_and_none_is_begun(http: httpx.Client, engine: TorchEngine) -> None:
    steps = engine.stats().steps

    assert predict(http, chat(n=10**6)).status_code == 400
    assert engine.stats().steps == steps


def test_attack_3_answers_that_the_queue_never_holds_are_refused_for_good(http: httpx.Client) -> None:
    error = predict(http, chat(n=5)).json()["error"]

    assert error["details"][0]["metadata"]["field"] == "n"


def test_attack_3_answers_beyond_the_queue_are_refused_together(
    http: httpx.Client, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine._runner.run

    def slowly(batch: Batch) -> torch.Tensor | None:
        time.sleep(0.005)  # the toy model's answers could be over before the next request is read
        return run(batch)

    monkeypatch.setattr(engine._runner, "run", slowly)
    running = chat(n=4, max_tokens=400, ignore_eos=True, stream=True)
    with http.stream("POST", f"{ROOT}/medgemma/chat/completions", json=running) as other:
        lines = other.iter_lines()  # kept: an iterator that is dropped closes the connection
        next(lines)
        answer = predict(http, chat(n=4, max_tokens=400, ignore_eos=True))

    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) >= 1
    deadline = time.monotonic() + 10
    while engine.stats().running + engine.stats().queued and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (engine.stats().running, engine.stats().queued, engine.stats().held) == (0, 0, 0)


def test_attack_3_many_frames_in_one_url_are_refused(http: httpx.Client) -> None:
    frames = [Image.fromarray(np.full((8, 8), i % 256, np.uint8)) for i in range(500)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])

    error = predict(http, chat([image(file.getvalue(), "gif")])).json()["error"]

    assert error["status"] == "INVALID_ARGUMENT"
    assert "frames" in error["message"]


def test_attack_3_more_images_than_a_request_may_have_are_refused_undecoded(http: httpx.Client) -> None:
    error = predict(http, chat([image(b"not decoded")] * 100)).json()["error"]

    assert "3 in a request" in error["message"]


def test_attack_3_forms_of_a_body_that_nobody_reads(http: httpx.Client) -> None:
    parts = {f"f{i}": ("a", b"x") for i in range(2000)}
    assert http.post(f"{ROOT}/medgemma:predict", files=parts).status_code == 400
    endless = b"--x\r\n" * 100_000
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert http.post(f"{ROOT}/medgemma:predict", content=endless, headers=headers).status_code == 400


def test_attack_3_range_header_changes_nothing(http: httpx.Client) -> None:
    ranges = "bytes=" + ",".join(f"{i}-" for i in range(1000))
    plain, ranged = http.get("/v1/models"), http.get("/v1/models", headers={"Range": ranges})

    assert (ranged.status_code, ranged.content) == (200, plain.content)


def test_attack_3_large_upload_does_not_stop_the_others(http: httpx.Client, server: inprocess.Server) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    body = {"instances": [{"image": {"input_bytes": base64.b64encode(file.getvalue()).decode()}}]}
    waits: list[float] = []
    done = threading.Event()

    def upload() -> None:
        with httpx.Client(base_url=server.base_url, timeout=60) as mine:
            for _ in range(3):
                assert mine.post(f"{ROOT}/medsiglip:predict", json=body).status_code == 200
        done.set()

    thread = threading.Thread(target=upload)
    thread.start()
    while not done.is_set():
        began = time.monotonic()
        assert http.get("/health").status_code == 200
        waits.append(time.monotonic() - began)
    thread.join()
    assert len(waits) > 3  # health was answered again and again meanwhile


def test_attack_7_templates_of_callers_are_never_run(http: httpx.Client) -> None:
    for key, value in {
        "chat_template": "{% for a in range(10**9) %}{% endfor %}",
        "chat_template_kwargs": {"enable_thinking": True, "x": "{{ 1 }}"},
    }.items():
        error = predict(http, chat(**{key: value})).json()["error"]
        assert error["details"][0]["metadata"]["field"] == key
    assert predict(http, chat("{{ 7 * 7 }}{% raw %}")).status_code == 200


def test_attack_7_pattern_of_a_tool_is_not_compiled(http: httpx.Client) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"pattern": "(a+)+$"}}}
    assert predict(http, chat(tools=[tool])).status_code == 400


def test_attack_7_text_that_is_no_text(http: httpx.Client) -> None:
    raw = b'{"instances": [{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 3}]}'
    assert http.post(f"{ROOT}/medgemma:predict", content=raw).status_code == 400
    assert predict(http, chat("")).status_code == 400
    assert predict(http, chat("\u202eabc\u2066")).status_code == 200
    assert predict(http, chat("e" + "\u0301" * 10**6)).status_code == 400


def test_attack_8_no_pickle_and_no_other_way_to_run_what_is_sent() -> None:
    names = (
        r"\b(pickle|cPickle|dill|cloudpickle|marshal|shelve|zmq|multiprocessing|torch\.load|torch\.distributed)\b"
    )
    found = [
        f"{path.name}: {line.strip()}"
        for path in Path(medport_local.__file__).parent.rglob("*.py")
        if "phantom" not in path.parts  # training, which draws in several processes and serves nobody
        for line in path.read_text().splitlines()
        if re.match(rf"\s*(import|from)\s.*{names}", line)
        or re.search(r"(?<!safetensors\.)\btorch\.load\(|\bpickle\.", line)
    ]
    assert found == []


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux's list of sockets")
def test_attack_8_the_server_listens_where_it_was_told_and_nowhere_else(server: inprocess.Server) -> None:
    own = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)}
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                listening.add(int(fields[1].rpartition(":")[2], 16))
    port = int(server.base_url.rpartition(":")[2])
    assert port in listening
    # Other tests of this process may have servers of their own; they are loopback ports made the same way.
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"\x80\x04\x95 pickle?\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


def _is_link(fd: str) -> bool:
    try:
        os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    return True


def test_attack_10_slot_of_one_who_left_says_nothing_of_him(http: httpx.Client, engine: TorchEngine) -> None:
    expected = predict(http, chat("who is next?", max_tokens=20)).json()["predictions"]["choices"]
    for _ in range(3):
        body = chat("a secret of the one before", max_tokens=400, ignore_eos=True, stream=True)
        with http.stream("POST", f"{ROOT}/medgemma/chat/completions", json=body) as gone:
            next(gone.iter_lines())
        assert predict(http, chat("who is next?", max_tokens=20)).json()["predictions"]["choices"] == expected


def test_attack_10_neighbours_in_a_batch_do_not_change_an_answer(http: httpx.Client) -> None:
    alone = predict(http, chat("mine", max_tokens=12)).json()["predictions"]["choices"]
    both = predict(http, chat("mine", max_tokens=12), chat("another's, and a longer one", max_tokens=30)).json()

    assert both["predictions"][0]["choices"] == alone


def test_attack_10_error_holds_nothing_of_its_own_or_anothers_request(http: httpx.Client) -> None:
    secret = "Doe^Jane-19700101"
    for body in (
        chat(secret, temperature="hot"),
        chat(secret, stop=[secret] * 40),
        chat([{"type": secret, "text": secret}]),
        {"messages": [{"role": secret, "content": secret}]},
        chat([{"type": "image_url", "image_url": {"url": f"https://example.org/{secret}.png"}}]),
        chat(secret, response_format={"type": secret}),
        chat(secret, response_format={"type": "json_schema", "json_schema": {"name": secret, "schema": {
            "type": secret}}}),
    ):  # fmt: skip
        answer = predict(http, body)
        assert answer.status_code == 400
        assert "Jane" not in answer.text


@pytest.mark.parametrize(
    ("endpoint", "instance"),
    [
        ("medgemma", {"messages": [1] * 2_000_000}),
        ("medgemma", {"messages": [{"role": "user", "content": [{}] * 1_000_000}]}),
        ("medgemma-dicom", {"messages": [{"role": "user", "content": [{}] * 1_000_000}]}),
        ("medgemma", {"prompt": "x", "multi_modal_data": {"image": [""] * 1_000_000}}),
        ("medgemma", {**chat(), "logit_bias": {f"x{i}": 1 for i in range(300_000)}}),
        ("medgemma", {**chat(), **{f"x{i}": 1 for i in range(300_000)}}),
        ("medsiglip", {"image": {f"x{i}": 1 for i in range(300_000)}}),
        # Below the number of entries that a body may have: each form's own limit.
        ("medgemma", {"messages": [1] * 100_000}),
        ("medgemma", {"messages": [{"role": "user", "content": [{}] * 100_000}]}),
        ("medgemma", {**chat(), "logit_bias": {f"x{i}": 1 for i in range(50_000)}}),
        ("medsiglip", {"image": {f"x{i}": 1 for i in range(100_000)}}),
    ],
)
def test_attack_3_lists_of_millions_are_refused_before_they_are_looked_at(
    http: httpx.Client, endpoint: str, instance: object
) -> None:
    # Checked item by item the first of them took half a minute, in which nobody was served; the client waits 30 s.
    answer = predict(http, instance, endpoint=endpoint)

    assert answer.status_code == 400


def test_attack_3_text_of_megabytes_is_cut_before_it_is_tokenised(http: httpx.Client) -> None:
    long = {"text": "nodule " * 1_000_000}

    short, cut = predict(http, {"text": "nodule " * 64}, long, endpoint="medsiglip").json()["predictions"]

    assert short["embedding"] == cut["embedding"]
