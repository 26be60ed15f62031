"""int8 snapshots: what is written, what it loads as, how far it is from its base, and what is refused."""

from __future__ import annotations

import errno
import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration
from typer.testing import CliRunner

from medport.errors import ConfigError, VerificationError
from medport_local import cli_quantize
from medport_local.engine import drift, probes, shard_writer
from medport_local.engine.assembly import canonical
from medport_local.engine.blocks import Lease
from medport_local.engine.decoder import LINEARS, Decoder
from medport_local.engine.drift import Baseline
from medport_local.engine.int8_weights import is_quantised
from medport_local.engine.kvcache import KvCache
from medport_local.engine.loading import DtypeRule, Gemma, load_gemma
from medport_local.engine.quantise import Quantised, quantise, rows_to_int8
from medport_local.engine.reference import Reference
from medport_local.engine.sequence import GenerationRequest, Sampling
from medport_local.phantom import weights_dir
from medport_local.snapshot import Snapshot, open_snapshot

WEIGHTS = "model.safetensors"
Q_PROJ = "model.language_model.layers.0.self_attn.q_proj.weight"
OTHER_Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"
NORM = "model.language_model.norm.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def phantom() -> Snapshot:
    return open_snapshot(weights_dir("medgemma"))


@pytest.fixture(scope="module")
def made(phantom: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    return quantise(phantom, tmp_path_factory.mktemp("int8") / "medgemma-int8", device="cpu")


def dequantised(base: Snapshot, int8: Gemma, dtype: DtypeRule) -> Gemma:
    """The base's own module with ``int8 * scale`` in the place of each weight: what the int8 model stands for."""
    gemma = load_gemma(base, device="cpu", dtype=dtype)
    text_model = gemma.model.model.language_model if gemma.images is not None else gemma.model.model
    places = {"embed_tokens": text_model.embed_tokens, "lm_head": gemma.model.lm_head}
    for index, layer in enumerate(text_model.layers):
        for owner, names in ((layer.self_attn, LINEARS[:4]), (layer.mlp, LINEARS[4:])):
            places |= {f"layers.{index}.{name}": getattr(owner, name) for name in names}
    assert places.keys() == int8.int8.keys()
    with torch.no_grad():
        for name, module in places.items():
            module.weight.copy_(int8.int8[name].weight.float() * int8.int8[name].scale[:, None])
    return gemma


def next_logits(gemma: Gemma, request: GenerationRequest) -> Tensor:
    """float32 ``[vocabulary]`` after the prompt, by the decoder."""
    decoder, count = Decoder.of(gemma), len(request.tokens)
    cache = KvCache(
        decoder.shape,
        slots=1,
        tokens=count,
        window=min(count, decoder.shape.window),
        dtype=decoder.dtype,
        device=decoder.device,
    )
    attend = cache.chunk(Lease(0, 0, count), 0, count, ())
    with torch.inference_mode():
        x = decoder.embed(torch.tensor(request.tokens))
        return decoder.logits(decoder.forward(x, torch.arange(count), attend)[-1:])[0]


def request_of(gemma: Gemma, text: str) -> GenerationRequest:
    return GenerationRequest(
        tokens=tuple(gemma.text.encode(gemma.text.bos + text)), images=(), sampling=Sampling(max_tokens=1)
    )


def copy_of(
    snapshot: Snapshot, to: Path, change: Callable[[dict[str, Any]], object] = lambda weights: None
) -> Path:
    """Without its manifest, so that only the loading can tell what was changed."""
    shutil.copytree(snapshot.directory, to, ignore=shutil.ignore_patterns("manifest.json"))
    weights = load_file(to / WEIGHTS)
    change(weights)
    save_file(weights, to / WEIGHTS)
    return to


# What is written


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_weight_is_met_to_half_a_step_of_its_row(dtype: torch.dtype) -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3] *= 1e4
    weight[7] = 0

    int8, scale = rows_to_int8(weight)

    gap = (int8.float() * scale[:, None] - weight.float()).abs()
    assert int8.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert (gap <= scale[:, None] * 0.5001).all()
    assert int8.abs().amax(1).tolist() == [127] * 7 + [0] + [127] * 32
    assert scale[7] == 1
    assert torch.equal(scale.bfloat16().float(), scale)


def test_the_linears_and_the_embedding_become_int8_and_all_else_stays(phantom: Snapshot, made: Quantised) -> None:
    before, after = (load_file(each.directory / WEIGHTS) for each in (phantom, made.snapshot))
    names = {canonical(name): name for name in before}

    int8 = {canonical(name) for name, tensor in after.items() if tensor.dtype == torch.int8}

    expected = {f"layers.{i}.self_attn.{name}.weight" for i in range(6) for name in LINEARS[:4]}
    expected |= {f"layers.{i}.mlp.{name}.weight" for i in range(6) for name in LINEARS[4:]}
    assert int8 == {*expected, "embed_tokens.weight"}
    rest = {
        name: tensor for name, tensor in after.items() if not is_quantised(canonical(name).removesuffix("_scale"))
    }
    assert len(rest) + len(int8) == len(before)
    for name, tensor in rest.items():
        assert torch.equal(tensor, before[names[canonical(name)]]), name


def test_the_weights_take_little_more_than_half(phantom: Snapshot, made: Quantised) -> None:
    language = [Q_PROJ.replace("0.self_attn.q_proj", f"{i}.mlp.up_proj") for i in range(6)]
    after = load_file(made.snapshot.directory / WEIGHTS)

    numbers = sum(after[name].numel() for name in language)
    stored = sum(after[name].nbytes + after[f"{name}_scale"].nbytes for name in language)

    assert numbers < stored < 1.05 * numbers
    assert made.snapshot.files[WEIGHTS].size_bytes < 0.7 * phantom.files[WEIGHTS].size_bytes


def test_the_other_files_are_copied_byte_for_byte(phantom: Snapshot, made: Quantised) -> None:
    others = phantom.files.keys() - {WEIGHTS, "config.json"}

    assert {name: made.snapshot.files[name] for name in others} == {name: phantom.files[name] for name in others}
    assert made.snapshot.files.keys() == phantom.files.keys()


def test_it_is_another_snapshot_that_names_its_parent(phantom: Snapshot, made: Quantised) -> None:
    manifest = json.loads((made.snapshot.directory / "manifest.json").read_text())

    opened = open_snapshot(made.snapshot.directory)

    assert opened.model_id == f"{phantom.model_id} int8"
    assert opened.int8
    assert not phantom.int8
    assert opened.snapshot_sha256 != phantom.snapshot_sha256
    assert opened.revision != phantom.revision
    assert phantom.snapshot_sha256 in (opened.parent or "")
    assert phantom.notice is not None
    assert (opened.notice or "").startswith(phantom.notice)
    assert "int8" in (opened.notice or "")
    assert manifest["parent"] == {
        "model_id": phantom.model_id,
        "revision": phantom.revision,
        "snapshot_sha256": phantom.snapshot_sha256,
    }
    assert manifest["drift"]["mean_kl_nats"] == made.drift.mean_kl_nats


def test_the_same_source_gives_the_same_snapshot(phantom: Snapshot, made: Quantised, tmp_path: Path) -> None:
    again = quantise(phantom, tmp_path / "again", device="cpu")

    assert again.snapshot.snapshot_sha256 == made.snapshot.snapshot_sha256
    assert again.snapshot.revision == made.snapshot.revision


def test_without_its_manifest_it_still_says_that_it_is_int8(made: Quantised, tmp_path: Path) -> None:
    folder = copy_of(made.snapshot, tmp_path / "bare")

    assert open_snapshot(folder).model_id.endswith(" int8")


def test_large_weights_are_spread_over_files_of_the_bounded_size(
    phantom: Snapshot, made: Quantised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 600_000)

    spread = quantise(phantom, tmp_path / "spread", device="cpu")

    sizes = [spread.snapshot.files[name].size_bytes for name in spread.snapshot.shards]
    assert len(sizes) > 4
    assert max(sizes) < 700_000
    assert "model.safetensors.index.json" in spread.snapshot.files
    assert spread.drift == made.drift


def test_the_files_can_be_read_by_whoever_may_read_the_others(made: Quantised) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in made.snapshot.directory.iterdir()}

    assert len(set(modes.values())) == 1


# What it loads as


@pytest.mark.parametrize(
    ("dtype", "allowed"),
    # In bfloat16 the dequantised weights are rounded once more, and so are the results of six layers.
    [("float32", 2e-3), ("bfloat16", 0.35)],
)
def test_it_computes_what_the_dequantised_model_computes(
    phantom: Snapshot, made: Quantised, dtype: DtypeRule, allowed: float
) -> None:
    int8 = load_gemma(made.snapshot, device="cpu", dtype=dtype)
    oracle = dequantised(phantom, int8, dtype)

    gaps = []
    for text in probes.TEXTS[:6]:
        request = request_of(int8, text)
        mine, other = next_logits(int8, request), Reference(oracle, request).prefill()
        gaps.append((mine - other).abs().max().item())

    assert int8.model.config.dtype == getattr(torch, dtype)
    assert max(gaps) <= allowed


@pytest.mark.parametrize("takes_images", [True, False])
def test_a_model_with_a_head_of_its_own_has_it_in_int8(
    takes_images: bool, gemma_folder: Path, text_gemma_folder: Path, tmp_path: Path
) -> None:
    source = open_snapshot(gemma_folder if takes_images else text_gemma_folder)
    made = quantise(source, tmp_path / "int8", device="cpu", accept_drift=True)

    int8 = load_gemma(made.snapshot, device="cpu")

    request = request_of(int8, "the north pier")
    gap = next_logits(int8, request) - Reference(dequantised(source, int8, "float32"), request).prefill()
    assert int8.int8["lm_head"] is not int8.int8["embed_tokens"]
    assert gap.abs().max() < 2e-3
    assert made.drift.images == (2 if takes_images else 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embedded_tokens_are_the_dequantised_ones_to_the_bit(
    phantom: Snapshot, made: Quantised, dtype: DtypeRule
) -> None:
    int8 = load_gemma(made.snapshot, device="cpu", dtype=dtype)
    oracle = dequantised(phantom, int8, dtype)
    ids = torch.arange(0, 1300, 7)

    embedded = Decoder.of(int8).embed(ids)

    assert embedded.dtype == getattr(torch, dtype)
    assert torch.equal(embedded, oracle.model.model.language_model.embed_tokens(ids))


def test_no_full_weight_of_the_language_model_is_in_memory(made: Quantised) -> None:
    int8 = load_gemma(made.snapshot, device="cpu")

    named = int8.model.named_parameters(remove_duplicate=False)
    assert all(each.is_meta == is_quantised(canonical(name)) for name, each in named)
    assert int8.small
    assert Decoder.of(int8).device == torch.device("cpu")


def test_a_step_reads_half_the_bytes(phantom: Snapshot, made: Quantised) -> None:
    int8, base = (
        Decoder.of(load_gemma(each, device="cpu", dtype="bfloat16")).step_bytes
        for each in (made.snapshot, phantom)
    )

    assert 0.5 < int8 / base < 0.53


def test_a_full_model_has_no_int8(phantom: Snapshot) -> None:
    assert load_gemma(phantom, device="cpu").int8 == {}


def test_the_plain_way_to_an_answer_is_refused_by_name(made: Quantised) -> None:
    int8 = load_gemma(made.snapshot, device="cpu")

    with pytest.raises(ConfigError, match="int8"):
        Reference(int8, request_of(int8, "the pier"))


@pytest.mark.parametrize("model_class", [AutoModelForCausalLM, Gemma3ForConditionalGeneration])
def test_transformers_refuses_it_and_does_not_take_the_integers_for_weights(
    model_class: Any, made: Quantised
) -> None:
    with pytest.raises(ValueError, match="quant_method"):
        model_class.from_pretrained(made.snapshot.directory, local_files_only=True)


# What is refused when it is loaded


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop(f"{Q_PROJ}_scale"), r"lacks layers.0.self_attn.q_proj.weight_scale in int8"),
        (lambda weights: weights.pop(Q_PROJ), r"lacks layers.0.self_attn.q_proj.weight in int8"),
        (
            lambda weights: weights.update({Q_PROJ: weights[Q_PROJ].to(torch.bfloat16)}),
            "another shape or kind of number for .*q_proj",
        ),
        (
            lambda weights: weights.update({f"{Q_PROJ}_scale": weights[f"{Q_PROJ}_scale"].to(torch.bfloat16)}),
            "another shape or kind of number for .*q_proj.weight_scale",
        ),
        (
            lambda weights: weights.update({Q_PROJ: weights[Q_PROJ][:, 1:].contiguous()}),
            "another shape or kind of number for .*q_proj",
        ),
        (
            lambda weights: weights.update({f"{Q_PROJ}_scale": weights[f"{Q_PROJ}_scale"] * float("inf")}),
            "holds what is no number in .*q_proj.weight_scale",
        ),
        (lambda weights: weights.update({NORM: torch.ones(128, dtype=torch.int8)}), "norm.weight in int8"),
        (lambda weights: weights.update({f"{NORM}_scale": torch.ones(128)}), "the unknown .*norm.weight_scale"),
        (lambda weights: weights.pop(NORM), "lacks norm.weight"),
        (
            lambda weights: weights.update(
                {"lm_head.weight": weights[EMBEDDING].clone(), "lm_head.weight_scale": torch.ones(1344)}
            ),
            "embedding and head",
        ),
        (
            lambda weights: weights.update({OTHER_Q_PROJ: weights[Q_PROJ].clone()}),
            "holds twice",
        ),
    ],
)
def test_a_weight_that_is_not_as_it_should_be_is_refused_by_name(
    change: Callable[[dict[str, Tensor]], object], said: str, made: Quantised, tmp_path: Path
) -> None:
    snapshot = open_snapshot(copy_of(made.snapshot, tmp_path / "changed", change))

    with pytest.raises(VerificationError, match=said):
        load_gemma(snapshot, device="cpu")


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "gptq", "bits": 4},
        {"format": "medport_int8", "version": 2},
        {"format": "medport_int8", "version": 1, "quant_method": "gptq"},
        "medport_int8",
    ],
)
def test_weights_that_are_quantised_in_another_way_are_refused(
    said: object, made: Quantised, tmp_path: Path
) -> None:
    folder = copy_of(made.snapshot, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))

    with pytest.raises(VerificationError, match="quantised in a way"):
        open_snapshot(folder)


def test_int8_is_refused_where_the_configuration_does_not_say_it(made: Quantised, tmp_path: Path) -> None:
    folder = copy_of(made.snapshot, tmp_path / "silent")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(VerificationError, match="is of I8, which is not loaded"):
        open_snapshot(folder)


def test_a_medsiglip_cannot_say_that_it_is_int8(siglip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "siglip"
    shutil.copytree(siglip_folder, folder, ignore=shutil.ignore_patterns("manifest.json"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"format": "medport_int8", "version": 1}
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(VerificationError, match="quantised in a way"):
        open_snapshot(folder)


# Drift


def test_a_model_has_no_drift_from_itself(text_gemma_folder: Path) -> None:
    gemma = load_gemma(open_snapshot(text_gemma_folder), device="cpu")

    found = Baseline(gemma).compare(gemma)

    assert found.mean_kl_nats == 0
    assert found.argmax_agreement == 1
    assert found.perplexity_ratio == 1
    assert found.max_logit_difference == 0
    assert found.texts == len(probes.TEXTS)
    assert found.acceptable


def test_drift_is_what_transformers_and_the_textbook_say(phantom: Snapshot, made: Quantised) -> None:
    int8 = load_gemma(made.snapshot, device="cpu")
    base, oracle = load_gemma(phantom, device="cpu"), dequantised(phantom, int8, "float32")
    kl, losses, same, furthest = [], [], [], 0.0
    for prompt in Baseline(base).prompts:
        ids = torch.tensor([prompt.tokens])
        soft = ids[0] == base.image_token_id
        inputs = {"token_type_ids": soft[None].long()}
        if prompt.drawing is not None:
            inputs["pixel_values"] = torch.from_numpy(prompt.drawing)[None]
        with torch.inference_mode():
            p, q = (model.model(input_ids=ids, **inputs).logits[0].double() for model in (base, oracle))
        text = ~soft[1:]
        p, q, wanted = p[:-1][text], q[:-1][text], ids[0, 1:][text]
        furthest = max(furthest, (p - q).abs().max().item())
        same.append(p.argmax(-1) == q.argmax(-1))
        p, q = p.softmax(-1), q.softmax(-1)
        kl.append((p * (p / q).log()).sum(-1))
        losses.append(torch.stack([-each.log()[torch.arange(len(wanted)), wanted] for each in (p, q)], dim=1))

    found = made.drift

    base_loss, int8_loss = torch.cat(losses).mean(0).tolist()
    assert found.tokens == len(torch.cat(kl))
    assert found.mean_kl_nats == pytest.approx(torch.cat(kl).mean().item(), rel=0.02)
    assert found.perplexity_base == pytest.approx(np.exp(base_loss), rel=1e-4)
    assert found.perplexity_int8 == pytest.approx(np.exp(int8_loss), rel=1e-3)
    assert found.argmax_agreement == pytest.approx(torch.cat(same).double().mean().item(), abs=2e-3)
    assert found.max_logit_difference == pytest.approx(furthest, rel=0.05)


def test_the_baseline_lets_go_of_its_model(text_gemma_folder: Path) -> None:
    gemma = load_gemma(open_snapshot(text_gemma_folder), device="cpu")
    weight = weakref.ref(gemma.model.model.layers[0].mlp.up_proj.weight)
    baseline = Baseline(gemma)

    del gemma
    gc.collect()

    assert weight() is None
    assert baseline.prompts


def test_drift_above_the_bound_is_refused_and_leaves_nothing(
    phantom: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "MAX_PERPLEXITY_RATIO", 0.5)

    with pytest.raises(VerificationError, match="perplexity"):
        quantise(phantom, tmp_path / "refused", device="cpu")

    assert list(tmp_path.iterdir()) == []


def test_drift_above_the_bound_is_written_if_it_is_accepted(
    phantom: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "MAX_PERPLEXITY_RATIO", 0.5)

    made = quantise(phantom, tmp_path / "accepted", device="cpu", accept_drift=True)

    assert not made.drift.acceptable
    assert open_snapshot(tmp_path / "accepted").int8


def test_a_perplexity_that_is_no_number_is_not_acceptable(made: Quantised) -> None:
    broken = drift.Drift(
        **{field: getattr(made.drift, field) for field in drift.Drift.__dataclass_fields__ if "int8" not in field},
        perplexity_int8=float("nan"),
    )

    assert not broken.acceptable


# What is refused before, and what is left when it fails


def test_a_target_that_exists_is_refused_and_left_as_it_is(phantom: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()

    with pytest.raises(ConfigError, match="exists already"):
        quantise(phantom, tmp_path / "there", device="cpu")

    assert list((tmp_path / "there").iterdir()) == []


def test_a_target_that_appears_meanwhile_is_refused_and_left_as_it_is(phantom: Snapshot, tmp_path: Path) -> None:
    def appear(doing: str, done: int, of: int) -> None:
        if doing == "comparing" and done == 0:
            (tmp_path / "to").mkdir()
            (tmp_path / "to" / "mine.txt").write_text("mine")

    with pytest.raises(ConfigError, match="exists already"):
        quantise(phantom, tmp_path / "to", device="cpu", progress=appear)

    assert [path.name for path in tmp_path.rglob("*")] == ["to", "mine.txt"]


@pytest.mark.parametrize("where", ["missing/to", "source/to"])
def test_a_target_without_a_place_of_its_own_is_refused(where: str, phantom: Snapshot, tmp_path: Path) -> None:
    shutil.copytree(phantom.directory, tmp_path / "source")
    source = open_snapshot(tmp_path / "source")
    before = sorted(path.name for path in tmp_path.rglob("*"))

    with pytest.raises(ConfigError) as refused:
        quantise(source, tmp_path / where, device="cpu")

    assert refused.value.field == "to"
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_what_is_int8_already_is_refused(made: Quantised, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="int8 already"):
        quantise(made.snapshot, tmp_path / "again", device="cpu")


def test_medsiglip_is_refused(siglip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only MedGemma"):
        quantise(open_snapshot(siglip_folder), tmp_path / "to", device="cpu")


@pytest.mark.parametrize("stage", ["loading", "writing", "reading the probes", "comparing"])
def test_an_interruption_leaves_nothing(stage: str, phantom: Snapshot, tmp_path: Path) -> None:
    def interrupt(doing: str, done: int, of: int) -> None:
        if doing == stage and done >= of // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise(phantom, tmp_path / "to", device="cpu", progress=interrupt)

    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(
    phantom: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_writer, "save_file", full)

    with pytest.raises(ConfigError, match="no room") as refused:
        quantise(phantom, tmp_path / "to", device="cpu")

    assert refused.value.field == "to"
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_anything_is_read(
    phantom: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    seen: list[str] = []

    with pytest.raises(ConfigError, match="no room"):
        quantise(phantom, tmp_path / "to", device="cpu", progress=lambda doing, done, of: seen.append(doing))

    assert seen == []


# The command


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    cli_quantize.register(app)
    return app


def test_the_command_prints_the_drift_and_the_new_name(
    app: typer.Typer, phantom: Snapshot, tmp_path: Path
) -> None:
    done = CliRunner().invoke(
        app, ["quantize", "--from", str(phantom.directory), "--to", str(tmp_path / "to"), "--device", "cpu"]
    )

    assert done.exit_code == 0, done.output
    assert f"{phantom.model_id} int8" in done.stdout
    assert phantom.snapshot_sha256 in done.stdout
    assert "perplexity, int8" in done.stdout
    assert "mean KL divergence" in done.stdout
    assert done.stderr.splitlines() == ["loading", "writing", "reading the probes", "comparing"]


def test_the_command_prints_one_object_if_asked(app: typer.Typer, phantom: Snapshot, tmp_path: Path) -> None:
    arguments = ["quantize", "--from", str(phantom.directory), "--to", str(tmp_path / "to"), "--device", "cpu"]

    done = CliRunner().invoke(app, [*arguments, "--json"])

    printed = json.loads(done.stdout)
    manifest = json.loads((tmp_path / "to" / "manifest.json").read_text())
    assert printed["drift"] == manifest["drift"]
    assert printed["snapshot_sha256"] == manifest["snapshot_sha256"]
    assert printed["parent"].startswith(f"{phantom.model_id}@")


def test_the_command_passes_on_what_is_refused(app: typer.Typer, phantom: Snapshot, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["quantize", "--from", str(phantom.directory), "--to", str(tmp_path)])

    assert isinstance(done.exception, ConfigError)
    assert done.stdout == ""
