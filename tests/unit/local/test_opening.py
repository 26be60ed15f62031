"""How a model is opened by what the command line says, and what is told of it afterwards."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.lora import write_adapter
from typer.testing import CliRunner

import medport.cli
from medport.errors import ConfigError, VerificationError
from medport_local import cli_engine, cli_ready
from medport_local.app import Settings
from medport_local.byte_sizes import format_size, parse_size
from medport_local.cli_options import EngineOptions, default_state
from medport_local.cli_ready import Address
from medport_local.engine.agreement import Agreement
from medport_local.engine.embedder import Embedder
from medport_local.engine.engine import EngineLimits, TorchEngine
from medport_local.engine.footprint import lay_out
from medport_local.engine.kernels import Int8
from medport_local.engine.loading import load_gemma
from medport_local.opening import ModelOptions, Opened, open_model
from medport_local.snapshot import Snapshot, open_snapshot
from medport_local.standing import Room, Standing, weights_bytes

ADDRESS = Address(url="https://gpu01:8443", ca_file="ca.pem", api_key_env="KEY")
STANDING = Standing(
    model_id="google/medgemma-4b-it",
    engine="torch",
    device="cuda:0",
    device_name="NVIDIA H100",
    dtype="bfloat16",
    int8=True,
    weights_bytes=4 * 2**30,
    room=Room(
        kv_bytes=3 * 2**30,
        rings_bytes=2**30,
        arena_bytes=2**30,
        shared_bytes=2**30,
        request_tokens=8192,
        requests_at_once=12,
        limited_by="memory",
    ),
    reuse_bytes=2**30,
    adapters={"chest": "ab" * 32},
)


@pytest.fixture
def opening() -> Any:
    """Opens models, and closes them in the end."""
    opened: list[Opened] = []

    def make(*arguments: Any, **options: Any) -> Opened:
        opened.append(open_model(*arguments, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.engine.close()


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("8GiB", 8 * 2**30), ("8 GB", 8 * 10**9), ("1.5MiB", 3 * 2**19), ("512mib", 2**29)],
)
def test_size_is_read_as_it_is_written(text: str, size: int) -> None:
    assert parse_size(text, field="reuse") == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "8 GiB of memory", "nan", "1e3", "99999999PB", "8Q"])
def test_what_is_no_size_names_its_option(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_size(text, field="kv-cache")

    assert raised.value.field == "kv-cache"


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (8 * 2**30, "8 GiB")])
def test_size_is_told_in_the_largest_unit_that_fits(size: int, text: str) -> None:
    assert format_size(size) == text


# Options


def test_what_was_not_given_is_the_engines_own_default() -> None:
    options = EngineOptions()

    assert options.limits() == EngineLimits()
    assert options.limits().reuse_bytes == 0
    assert options.models() == ModelOptions(engine_state=default_state())


def test_each_option_reaches_the_engines_limits() -> None:
    options = EngineOptions(max_running=3, kv_cache="1GiB", reuse="2MiB", stall_ms=50, max_wait_s=7)

    assert options.limits() == EngineLimits(
        max_running=3, kv_bytes=2**30, reuse_bytes=2**21, stall_ms=50, max_wait_s=7
    )


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"reuse": "much"}, "reuse"),
        ({"kv_cache": "much"}, "kv-cache"),
        ({"adapters": ["chest"]}, "adapter"),
        ({"adapters": ["chest=a", "chest=b"]}, "adapter"),
        ({"adapters": ["Chest X=a"]}, "adapter"),
        ({"dtype": "float16"}, "dtype"),
        ({"embed_dtype": "int8"}, "embed-dtype"),
        ({"engine": "llama"}, "engine"),
        ({"engine": "vllm", "adapters": ["chest=a"]}, "adapter"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        EngineOptions(**options).models()

    assert raised.value.field == field


def test_records_lie_in_the_users_state_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    assert EngineOptions().models().engine_state == tmp_path / "medport"
    assert EngineOptions(engine_state=Path("x")).models().engine_state == Path("x")


def test_adapters_without_a_model_to_adapt_are_refused(siglip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no MedGemma"):
        Settings(snapshots={"medsiglip": siglip_folder}, models=ModelOptions(adapters={"chest": tmp_path}))


# Opening


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_medgemma_is_opened_in_the_dtype_that_is_asked_for(
    gemma_snapshot: Snapshot, opening: Callable[..., Opened], dtype: Any
) -> None:
    options = ModelOptions(device="cpu", dtype=dtype)
    opened = opening(gemma_snapshot, options, engine_limits=EngineLimits(max_running=2))

    told = opened.standing
    assert isinstance(opened.engine, TorchEngine)
    assert (told.dtype, told.device, told.engine, told.int8) == (dtype, "cpu", "torch", False)
    with safe_open(gemma_snapshot.directory / "model.safetensors", "pt") as stored:
        count = sum(stored.get_tensor(name).numel() for name in stored.keys())  # noqa: SIM118  no dictionary
    assert told.weights_bytes == count * (4 if dtype == "float32" else 2)
    assert told.room is not None
    assert (told.room.request_tokens, told.room.requests_at_once) == (512, 2)
    assert told.room.kv_bytes >= opened.engine.stats().kv_bytes_total


def test_weights_of_int8_are_counted_once_and_as_they_are(gemma_snapshot: Snapshot) -> None:
    gemma = load_gemma(gemma_snapshot, device="cpu")
    before = weights_bytes(gemma)
    shared = Int8(torch.zeros(10, 4, dtype=torch.int8), torch.zeros(10))

    object.__setattr__(gemma, "int8", {"embed_tokens": shared, "lm_head": shared})

    assert weights_bytes(gemma) == before + 10 * 4 + 10 * 4


@pytest.mark.parametrize(("rule", "dtype", "size"), [("auto", "float32", 4), ("bfloat16", "bfloat16", 2)])
def test_medsiglip_tells_the_dtype_that_it_was_settled_on(
    siglip_folder: Path, opening: Callable[..., Opened], rule: Any, dtype: str, size: int
) -> None:
    opened = opening(open_snapshot(siglip_folder), ModelOptions(device="cpu", embed_dtype=rule))

    assert isinstance(opened.engine, Embedder)
    assert opened.standing.dtype == dtype
    assert opened.standing.room is None
    assert opened.standing.weights_bytes % size == 0
    assert opened.standing.agreement is None


def test_adapters_are_loaded_for_the_model_and_told(
    gemma_folder: Path, gemma_snapshot: Snapshot, opening: Callable[..., Opened], tmp_path: Path
) -> None:
    config = json.loads((gemma_folder / "config.json").read_text())["text_config"]
    folder = write_adapter(tmp_path / "made", config)
    without = opening(gemma_snapshot, ModelOptions(device="cpu")).standing

    opened = opening(gemma_snapshot, ModelOptions(device="cpu", adapters={"chest": folder}))

    assert list(opened.standing.adapters) == ["chest"]
    assert len(opened.standing.adapters["chest"]) == 64
    assert opened.standing.weights_bytes > without.weights_bytes
    assert opened.engine.capabilities.adapters == ("chest",)


def test_adapter_of_another_model_keeps_the_server_from_starting(
    gemma_folder: Path, gemma_snapshot: Snapshot, tmp_path: Path
) -> None:
    config = json.loads((gemma_folder / "config.json").read_text())["text_config"]
    folder = write_adapter(tmp_path / "made", {**config, "hidden_size": 48})

    with pytest.raises(VerificationError, match=r"chest/adapter_model\.safetensors"):
        open_model(gemma_snapshot, ModelOptions(device="cpu", adapters={"chest": folder}))


def test_vllm_that_is_not_there_is_said_before_a_model_is_loaded(
    gemma_snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)

    with pytest.raises(ConfigError, match="vllm"):
        open_model(gemma_snapshot, ModelOptions(engine="vllm", engine_state=tmp_path))


def test_verifying_an_engine_that_is_not_there_is_a_setting_at_fault(
    gemma_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    command = ["verify", "--snapshot", str(gemma_folder), "--engine-state", str(tmp_path)]

    result = CliRunner().invoke(cli_engine.app, command)

    assert isinstance(result.exception, ConfigError)
    assert "vllm" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", ["serve", "snapshot", "bundle", "audit", "keys", "engine", "quantize", "bench"]
)
def test_command_line_of_the_sdk_knows_each_local_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        medport.cli.main([command, "--help"])

    assert ended.value.code == 0
    assert f"medport {command}" in capsys.readouterr().out


# What is told


@pytest.mark.parametrize(
    ("kv_bytes", "given", "at_once", "limited_by"),
    [
        (1 << 30, None, 8, "max-running"),
        (1 << 30, 1 << 30, 8, "max-running"),
        (1 << 20, 1 << 20, 1, "kv-cache"),
        (1 << 20, None, 1, "memory"),
    ],
)
def test_room_says_how_many_requests_fit_and_why_not_more(
    kv_bytes: int, given: int | None, at_once: int, limited_by: str
) -> None:
    footprint = lay_out(
        kv_bytes=kv_bytes, reuse_bytes=0, max_running=8, max_context=32768, window=1024, ring_token_bytes=64,
        token_bytes=64,
    )  # fmt: skip

    room = Room.of(footprint, EngineLimits(max_running=8, kv_bytes=given), max_context=32768)

    assert room.request_tokens == 8192
    assert (room.requests_at_once, room.limited_by) == (at_once, limited_by)
    assert room.kv_bytes == room.rings_bytes + room.arena_bytes + room.shared_bytes


def test_text_and_json_say_the_same_of_a_model() -> None:
    text = "\n".join(STANDING.lines())
    told = STANDING.as_json()

    assert "torch on cuda:0 (NVIDIA H100), bfloat16, int8 weights, 4 GiB of weights" in text
    assert (
        "3 GiB for keys and values: 12 requests of 8192 tokens at once, limited by the memory that was free"
        in text
    )
    assert "up to 1 GiB for the same key" in text
    assert "adapters: chest abababababab" in text
    assert (told["device"], told["room"]["requests_at_once"], told["adapters"]) == (
        "cuda:0",
        12,
        {"chest": "ab" * 32},
    )
    assert json.loads(json.dumps(told)) == told


def test_agreement_of_an_embedder_is_told_where_it_was_measured() -> None:
    measured = Agreement(dtype="bfloat16", min_cosine=0.99995, speedup=1.8, probes=12)
    standing = Standing(
        model_id="google/medsiglip-448", engine="torch", device="cpu", device_name="x", dtype="bfloat16",
        weights_bytes=2**30, agreement=measured,
    )  # fmt: skip

    assert "cosine at least 0.999950, 1.80 times as fast" in standing.lines()[-1]
    assert standing.as_json()["agreement"]["probes"] == 12


def test_json_line_keeps_its_promised_keys() -> None:
    line = json.loads(cli_ready.as_json(ADDRESS, [], {"medgemma": STANDING}))

    assert line == {
        "url": "https://gpu01:8443",
        "ca_file": "ca.pem",
        "endpoints": {},
        "models": {"medgemma": STANDING.as_json()},
    }


def test_text_says_how_to_connect() -> None:
    text = cli_ready.as_text(ADDRESS, [], {"medgemma": STANDING})

    assert (
        'medport.Client(backend="local", url="https://gpu01:8443", ca_file="ca.pem", api_key=os.environ["KEY"])'
        in text
    )
    assert "  medgemma: torch on cuda:0" in text
