"""What the server asks of its engine for each caller, and what comes back: names, adapters, faults."""

from __future__ import annotations

import base64
import gc
import io
import json
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.local_server import LocalServer, local_server
from support.lora import write_adapter
from support.polling import wait_until
from support.running import LoopThread

import medport
from medport.errors import NotFound
from medport.wire.vertex import ADAPTER_HEADER
from medport_local.app import Settings
from medport_local.engine.engine import EngineLimits
from medport_local.engine.scheduler import Batch
from medport_local.engine.sequence import GenerationRequest
from medport_local.opening import ModelOptions
from medport_local.serving import keys

ROOT = "/v1/projects/local/locations/europe-west4"
GEMMA, DICOM, SIGLIP = (f"{ROOT}/endpoints/{name}" for name in ("medgemma", "medgemma-dicom", "medsiglip"))
OPENAI = "/v1/chat/completions"
KEPT = 8 * 2**20


def chat(text: str = "hello", *images: bytes, **options: Any) -> dict[str, Any]:
    shown = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}
        for data in images
    ]
    message = {"role": "user", "content": [*shown, {"type": "text", "text": text}]}
    return {"messages": [message], "max_tokens": 8, "ignore_eos": True, **options}


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def drawing(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 40), np.uint8)).save(file, "PNG")
    return file.getvalue()


class Place:
    """A server, its engine, and what is asked of it."""

    def __init__(self, server: LocalServer, secrets: dict[str, str]) -> None:
        self.server = server
        self._secrets = secrets
        self.engine = server.app.state.engines["medgemma"]

    def client(self, name: str = "alpha") -> httpx.Client:
        return self.server.client(self._secrets[name])

    @contextmanager
    def requests(self) -> Iterator[list[GenerationRequest]]:
        seen: list[GenerationRequest] = []
        submit = self.engine.submit

        def noted(request: GenerationRequest) -> Any:
            seen.append(request)
            return submit(request)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.engine, "submit", noted)
            yield seen

    def idle(self) -> Any:
        """The engine's statistics once nothing runs."""
        wait_until(lambda: not (self.engine.stats().running or self.engine.stats().queued))
        return self.engine.stats()


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return file, {name: keys.add(file, name) for name in ("alpha", "beta")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, gemma_folder: Path, siglip_folder: Path) -> dict[str, Path]:
    config = json.loads((gemma_folder / "config.json").read_text())["text_config"]
    made = tmp_path_factory.mktemp("adapters")
    return {
        "medgemma": gemma_folder,
        "medsiglip": siglip_folder,
        "chest": write_adapter(made / "chest", config, seed=1),
        "skin": write_adapter(made / "skin", config, seed=2),
    }


def settings_of(folders: dict[str, Path], keys_file: Path, **more: Any) -> Settings:
    return Settings(
        snapshots={name: folders[name] for name in ("medgemma", "medsiglip")},
        keys_file=keys_file,
        models=ModelOptions(adapters={name: folders[name] for name in ("chest", "skin")}),
        drain_s=1.0,
        **more,
    )


@pytest.fixture(scope="module")
def place(
    folders: dict[str, Path],
    secrets: tuple[Path, dict[str, str]],
    loop_thread: LoopThread,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    """Nothing is kept of a request, and each leaves a line in the audit log."""
    made = tmp_path_factory.mktemp("server")
    settings = settings_of(
        folders,
        secrets[0],
        engine_limits=EngineLimits(max_running=4, max_queue=8),
        audit_dir=made / "audit",
        batch_dir=made,
    )
    with local_server(loop_thread, settings) as server:
        yield Place(server, secrets[1])


@pytest.fixture(scope="module")
def keeping(
    folders: dict[str, Path], secrets: tuple[Path, dict[str, str]], loop_thread: LoopThread
) -> Iterator[Place]:
    """Beginnings and images are kept."""
    limits = EngineLimits(max_running=4, max_queue=8, reuse_bytes=KEPT)
    with local_server(loop_thread, settings_of(folders, secrets[0], engine_limits=limits)) as server:
        yield Place(server, secrets[1])


@pytest.fixture
def http(place: Place) -> Iterator[httpx.Client]:
    with place.client() as client:
        yield client


# Who asks, and until when


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (OPENAI, chat()),
        (OPENAI, chat(stream=True)),
        (f"{GEMMA}:predict", {"instances": [chat()]}),
        (f"{GEMMA}:predict", {"instances": [{"prompt": "hello", "max_tokens": 4}]}),
        (
            f"{DICOM}:predict",
            {"instances": [{"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}]},
        ),
    ],
)
def test_engine_is_told_whose_request_it_is_and_when_nobody_waits_any_more(
    place: Place, path: str, body: dict[str, Any]
) -> None:
    with place.requests() as seen, place.client("beta") as client:
        assert client.post(path, json=body, headers={"X-Request-Timeout-S": "25"}).status_code == 200

    now = time.monotonic()
    assert {request.tenant for request in seen} == {"beta"}
    assert all(request.deadline is not None and now < request.deadline < now + 25 for request in seen)


def test_rows_of_a_batch_job_are_asked_for_in_the_name_of_who_began_it(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = place.server.app.state.guard.audit._directory.parent
    (folder / "in.jsonl").write_text(json.dumps(chat()) + "\n")
    job = {
        "displayName": "nightly",
        "model": f"{ROOT.removeprefix('/v1/')}/models/medgemma",
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["in.jsonl"]}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "out"}},
    }

    with place.requests() as seen, place.client("beta") as client:
        begun = client.post(f"{ROOT}/batchPredictionJobs", json=job).json()
        wait_until(lambda: "endTime" in client.get(f"/v1/{begun['name']}").json())

    assert [request.tenant for request in seen] == ["beta"]


def test_embedder_is_told_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = place.server.app.state.engines["medsiglip"]
    told: list[dict[str, Any]] = []
    embed_texts = embedder.embed_texts

    def noted(texts: Any, **options: Any) -> Any:
        told.append(options)
        return embed_texts(texts, **options)

    monkeypatch.setattr(embedder, "embed_texts", noted)
    with place.client("beta") as client:
        client.post(f"{SIGLIP}:predict", json={"instances": [{"text": "a"}]})
        client.post("/v1/embeddings", json={"model": "medsiglip", "input": "a"})

    assert [options["tenant"] for options in told] == ["beta", "beta"]
    assert all(options["deadline"] is not None for options in told)


def test_server_without_keys_has_one_tenant_without_a_name(gemma_folder: Path, loop_thread: LoopThread) -> None:
    settings = Settings(snapshots={"medgemma": gemma_folder}, drain_s=1.0)
    with local_server(loop_thread, settings) as server:
        here = Place(server, {})
        with here.requests() as seen, server.client() as client:
            client.post(OPENAI, json=chat())

    assert [request.tenant for request in seen] == [""]


# Several answers to one prompt


def test_several_answers_compute_their_prompt_once(place: Place, http: httpx.Client) -> None:
    before = place.idle()

    body = http.post(OPENAI, json=chat("a few words", drawing(1), n=3, temperature=1, seed=4)).json()

    after, prompt = place.idle(), body["usage"]["prompt_tokens"]
    assert len(body["choices"]) == 3
    assert after.prompt_tokens - before.prompt_tokens == prompt
    assert after.cache_hits - before.cache_hits == 2 * prompt
    assert after.reuse_bytes_used == 0


def test_answers_of_a_group_are_those_that_each_would_be_alone(http: httpx.Client) -> None:
    several = http.post(OPENAI, json=chat("some", drawing(2), n=3, temperature=1, seed=7)).json()["choices"]

    alone = [
        text_of(http.post(OPENAI, json=chat("some", drawing(2), temperature=1, seed=7 + i))) for i in range(3)
    ]

    assert [choice["message"]["content"] for choice in several] == alone
    assert len(set(alone)) > 1


def test_groups_have_names_of_their_own_and_a_single_answer_has_none(place: Place, http: httpx.Client) -> None:
    with place.requests() as seen:
        for n in (1, 2, 2):
            http.post(OPENAI, json=chat(n=n))

    names = [request.group for request in seen]
    assert names[0] is None
    assert names[1] == names[2] != names[3] == names[4]
    assert all(name is not None and len(name) > 20 for name in names[1:])


# Adapters


def test_adapter_that_is_named_gives_its_own_answer_and_says_so(place: Place, http: httpx.Client) -> None:
    base = http.post(OPENAI, json=chat())

    with place.requests() as seen:
        answers = [http.post(OPENAI, json=chat(model=f"medgemma+{name}")) for name in ("chest", "skin")]

    assert [request.adapter for request in seen] == ["chest", "skin"]
    assert len({text_of(answer) for answer in (base, *answers)}) == 3
    assert answers[0].json()["model"] == "medport/medgemma-toy+chest"
    assert base.json()["model"] == "medport/medgemma-toy"
    sha = place.server.app.state.standing["medgemma"].adapters["chest"]
    assert answers[0].headers[ADAPTER_HEADER] == f"chest@{sha}"
    assert ADAPTER_HEADER not in base.headers


@pytest.mark.parametrize(
    "model", ["medport/medgemma-toy+chest", "google/medgemma+chest", "+chest", "default+chest"]
)
def test_adapter_goes_with_every_name_of_its_base(place: Place, http: httpx.Client, model: str) -> None:
    with place.requests() as seen:
        assert http.post(OPENAI, json=chat(model=model)).status_code == 200

    assert seen[0].adapter == "chest"


def test_adapters_may_differ_from_instance_to_instance(place: Place, http: httpx.Client) -> None:
    models = ["medgemma+skin", "", "medgemma+chest"]
    answer = http.post(f"{GEMMA}:predict", json={"instances": [chat(model=model) for model in models]})

    said = [prediction["model"] for prediction in answer.json()["predictions"]]
    assert said == ["medport/medgemma-toy+skin", "medport/medgemma-toy", "medport/medgemma-toy+chest"]
    assert {each.partition("@")[0] for each in answer.headers[ADAPTER_HEADER].split(", ")} == {"skin", "chest"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"{GEMMA}:predict", {"instances": [{"prompt": "hello", "max_tokens": 4, "model": "medgemma+chest"}]}),
        (f"{DICOM}/chat/completions", {**chat(model="x+chest"), "ignore_eos": False}),
        (f"{GEMMA}/chat/completions", chat(model="x+chest", stream=True)),
    ],
)
def test_every_form_of_a_request_can_name_an_adapter(
    place: Place, http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    with place.requests() as seen:
        answer = http.post(path, json=body)

    assert answer.status_code == 200, answer.text
    assert seen[0].adapter == "chest"
    assert answer.headers[ADAPTER_HEADER].startswith("chest@")


def test_stream_says_the_adapter_in_each_chunk(http: httpx.Client) -> None:
    lines = http.post(OPENAI, json=chat(model="medgemma+chest", stream=True)).text.split("\n\n")

    models = {json.loads(line[6:])["model"] for line in lines if line.startswith("data: {")}
    assert models == {"medport/medgemma-toy+chest"}


@pytest.mark.parametrize("path", [OPENAI, f"{GEMMA}/chat/completions"])
def test_adapter_that_is_not_there_is_not_found_and_the_others_are_named(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json=chat(model="medgemma+brain"))

    assert answer.status_code == 404
    assert "medgemma+chest, medgemma+skin" in answer.text
    assert "brain" not in answer.text


def test_client_names_an_adapter_whole_and_streamed(place: Place, secrets: tuple[Path, dict[str, str]]) -> None:
    with (
        medport.Client(backend="local", url=place.server.url, api_key=secrets[1]["alpha"]) as client,
        place.requests() as seen,
    ):
        whole = client.chat("hello", adapter="chest", max_tokens=4)
        with client.chat_stream("hello", adapter="chest", max_tokens=4) as stream:
            list(stream)
            streamed = stream.result

    assert [request.adapter for request in seen] == ["chest", "chest"]
    assert whole.text == streamed.text
    sha = place.server.app.state.standing["medgemma"].adapters["chest"]
    assert whole.provenance.adapters == streamed.provenance.adapters == {"chest": sha}


def test_client_tells_that_an_adapter_is_not_there(place: Place, secrets: tuple[Path, dict[str, str]]) -> None:
    with (
        medport.Client(backend="local", url=place.server.url, api_key=secrets[1]["alpha"]) as client,
        pytest.raises(NotFound) as refused,
    ):
        client.chat("hello", adapter="brain")

    assert refused.value.field == "model"


def test_what_is_no_name_of_an_adapter_is_the_callers_fault(http: httpx.Client) -> None:
    answer = http.post(OPENAI, json=chat(model="medgemma+../chest"))

    assert answer.status_code == 400
    assert answer.json()["error"]["details"][0]["metadata"]["field"] == "model"


def test_embeddings_have_no_adapters(http: httpx.Client) -> None:
    assert http.post("/v1/embeddings", json={"model": "medsiglip+chest", "input": "a"}).status_code == 404


def test_adapters_stand_in_the_lists_of_models_and_endpoints(place: Place, http: httpx.Client) -> None:
    shas = place.server.app.state.standing["medgemma"].adapters
    cards = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
    endpoint, version = http.get(GEMMA).json(), http.get(f"{ROOT}/models/medgemma").json()

    card = cards["medgemma+chest"]
    assert (card["parent"], card["adapter_sha256"]) == ("medgemma", shas["chest"])
    assert card["snapshot_sha256"] == cards["medgemma"]["snapshot_sha256"]
    assert http.get("/v1/models/medgemma+chest").json() == card
    assert http.get("/v1/models/medgemma+brain").status_code == 404
    assert "parent" not in cards["medgemma"]
    assert f"medgemma+skin (sha256 {shas['skin']})" in endpoint["description"]
    assert f"medgemma+skin (sha256 {shas['skin']})" in version["versionDescription"]
    assert "description" not in http.get(SIGLIP).json()


def test_audit_log_says_which_adapter_took_part(place: Place, http: httpx.Client) -> None:
    answer = http.post(OPENAI, json=chat(model="medgemma+chest"))

    folder = place.server.app.state.guard.audit._directory
    lines = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    line = next(each for each in lines if each.get("request_id") == answer.headers["X-Request-Id"])
    assert line["adapters"] == {"chest": place.server.app.state.standing["medgemma"].adapters["chest"]}
    assert line["key"] == "alpha"


# What is kept


def test_prompt_of_a_request_that_is_over_is_found_by_its_own_key_alone(keeping: Place) -> None:
    asked = chat("a question that is asked again", drawing(3))
    with keeping.client("alpha") as alpha, keeping.client("beta") as beta:
        first = text_of(alpha.post(OPENAI, json=asked))
        start = keeping.idle()
        again = text_of(alpha.post(OPENAI, json=asked))
        found = keeping.idle()
        other = text_of(beta.post(OPENAI, json=asked))
        missed = keeping.idle()

    assert first == again == other
    assert start.reuse_bytes_used > 0
    assert found.cache_hits > start.cache_hits
    assert missed.cache_hits == found.cache_hits
    assert missed.image_hits == start.image_hits


def test_prompt_of_the_base_is_not_found_by_an_adapter(keeping: Place) -> None:
    with keeping.client() as client:
        client.post(OPENAI, json=chat("the same words"))
        before = keeping.idle()
        client.post(OPENAI, json=chat("the same words", model="medgemma+chest"))

    assert keeping.idle().cache_hits == before.cache_hits


def test_digests_of_images_are_made_before_the_engine_wants_them(keeping: Place) -> None:
    with keeping.requests() as seen, keeping.client() as client:
        client.post(OPENAI, json=chat("look", drawing(4), drawing(5)))

    assert [len(digest) for digest in seen[0].digests] == [32, 32]


@pytest.mark.parametrize("options", [{}, {"n": 2}, {"stream": True}])
def test_nothing_of_a_request_is_left_when_it_is_over(place: Place, http: httpx.Client, options: Any) -> None:
    with place.requests() as seen:
        http.post(OPENAI, json=chat("look", drawing(6), **options))
        images = [weakref.ref(image) for request in seen for image in request.images]
        seen.clear()

    def gone() -> bool:
        gc.collect()
        return all(image() is None for image in images)

    assert images
    wait_until(gone)
    stats = place.idle()
    assert (stats.held, stats.kv_bytes_used, stats.reuse_bytes_used) == (0, 0, 0)


# Faults


@contextmanager
def failing(place: Place, fault: Exception, *, at_token: int = 2) -> Iterator[None]:
    """Each step fails in which a sequence of the key ``beta`` has written so many tokens."""
    run = place.engine._runner.run

    def broken(batch: Batch) -> Any:
        for sequence in batch.sequences:
            if sequence.request.tenant == "beta" and len(sequence.generated) >= at_token:
                raise fault
        return run(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place.engine._runner, "run", broken)
        yield


@pytest.mark.parametrize("fault", [ValueError("CANARY"), torch.OutOfMemoryError("CANARY")])
def test_request_that_breaks_its_step_fails_alone(
    place: Place, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [chat(f"words {i}", max_tokens=30) for i in range(3)]
    with place.client("alpha") as alpha, place.client("beta") as beta, ThreadPoolExecutor(4) as pool:
        alone = [text_of(alpha.post(OPENAI, json=each)) for each in asked]
        with failing(place, fault):
            begun = [pool.submit(alpha.post, OPENAI, json=each) for each in asked]
            broken = beta.post(OPENAI, json=chat("poison", max_tokens=30))
            beside = [text_of(each.result()) for each in begun]
        healed = beta.post(OPENAI, json=chat("poison", max_tokens=30))

    assert broken.status_code == 500
    assert broken.json()["error"]["status"] == "INTERNAL"
    assert beside == alone
    assert healed.status_code == 200
    assert place.idle().held == 0
    assert "CANARY" not in broken.text + caplog.text
    assert type(fault).__name__ in caplog.text


def test_fault_of_the_model_is_told_in_the_form_of_each_dialect(place: Place) -> None:
    plain = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 30}
    with place.client("beta") as client, failing(place, ValueError(), at_token=0):
        predicted = client.post(f"{GEMMA}:predict", json={"instances": [plain]})
        dicom = client.post(f"{DICOM}:rawPredict", json=plain)
        streamed = client.post(OPENAI, json={**plain, "stream": True})

    assert (predicted.status_code, predicted.json()["error"]["status"]) == (500, "INTERNAL")
    assert (dicom.status_code, dicom.json()) == (500, {"error": "Internal server error."})
    assert streamed.status_code == 200
    last = json.loads(streamed.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == 500
    assert "[DONE]" not in streamed.text


def test_one_failed_answer_of_several_fails_the_request_and_frees_the_others(place: Place) -> None:
    before = place.idle()
    with place.client("beta") as client, failing(place, ValueError(), at_token=3):
        answer = client.post(OPENAI, json=chat(n=3, max_tokens=60))

    after = place.idle()
    assert answer.status_code == 500
    assert after.held == 0
    ended = after.failed + after.cancelled - before.failed - before.cancelled
    assert ended == 3


def test_deadline_inside_a_stream_is_an_error_event_and_frees_the_place(place: Place, http: httpx.Client) -> None:
    body = chat(stream=True, max_tokens=480)
    run = place.engine._runner.run
    slow = threading.Event()

    def slowly(batch: Batch) -> Any:
        slow.wait(0.02)
        return run(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place.engine._runner, "run", slowly)
        answer = http.post(OPENAI, json=body, headers={"X-Request-Timeout-S": "0.8"})

    last = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert (last["error"]["code"], last["error"]["status"]) == (504, "DEADLINE_EXCEEDED")
    assert place.idle().held == 0


def test_deadline_of_the_dicom_dialect_is_504_too(place: Place, http: httpx.Client) -> None:
    with pytest.MonkeyPatch.context() as patch:
        run, pause = place.engine._runner.run, threading.Event()
        patch.setattr(place.engine._runner, "run", lambda batch: (pause.wait(0.02), run(batch))[1])
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 480}
        answer = http.post(f"{DICOM}:rawPredict", json=body, headers={"X-Request-Timeout-S": "0.3"})

    assert answer.status_code == 504
    assert place.idle().held == 0


def test_full_queue_says_when_to_come_back_in_both_dialects(place: Place, http: httpx.Client) -> None:
    with pytest.MonkeyPatch.context() as patch:
        go_on = threading.Event()
        run = place.engine._runner.run
        patch.setattr(place.engine._runner, "run", lambda batch: (go_on.wait(30), run(batch))[1])
        with ThreadPoolExecutor(1) as pool:
            full = pool.submit(http.post, OPENAI, json=chat(n=12, max_tokens=2))
            wait_until(lambda: place.engine.stats().queued + place.engine.stats().running >= 12)
            plain = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
            # The same key: another would find room that is kept for those who do not wait yet.
            with place.client("alpha") as again:
                refused = [
                    again.post(OPENAI, json=chat(max_tokens=2)),
                    again.post(OPENAI, json=chat(max_tokens=2, stream=True)),
                    again.post(f"{DICOM}:rawPredict", json=plain),
                    again.post(f"{GEMMA}:predict", json={"instances": [plain]}),
                ]
            go_on.set()
            assert full.result().status_code == 200

    for answer in refused:
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["error"]["status"] == "RESOURCE_EXHAUSTED"


def test_weight_that_is_no_number_fails_who_meets_it_and_nobody_else(
    gemma_folder: Path, tmp_path: Path, loop_thread: LoopThread
) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(gemma_folder, spoiled)
    (spoiled / "manifest.json").unlink()
    weights = load_file(spoiled / "model.safetensors")
    row = json.loads((spoiled / "tokenizer.json").read_text())["model"]["vocab"]["Q"]
    (name,) = (key for key in weights if key.endswith("embed_tokens.weight"))
    weights[name][row] = float("nan")
    save_file(weights, spoiled / "model.safetensors", {"format": "pt"})

    settings = Settings(snapshots={"medgemma": spoiled}, drain_s=1.0)
    with local_server(loop_thread, settings) as server, server.client() as client, ThreadPoolExecutor(2) as pool:
        alone = text_of(client.post(OPENAI, json=chat("hello", max_tokens=30, logit_bias={str(row): -100})))
        beside = pool.submit(client.post, OPENAI, json=chat("hello", max_tokens=30, logit_bias={str(row): -100}))
        broken = client.post(OPENAI, json=chat("QQQ", max_tokens=30))
        after = text_of(client.post(OPENAI, json=chat("hello", max_tokens=30, logit_bias={str(row): -100})))

    assert broken.status_code == 500
    assert text_of(beside.result()) == alone == after
