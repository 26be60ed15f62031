"""From verified bytes to models: the same numbers as transformers' own loader, and nothing that was not hashed."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import write_text_gemma
from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration, SiglipModel

from medport.errors import ConfigError, VerificationError
from medport_local.engine import loading
from medport_local.engine.loading import load_codecs, load_gemma, load_siglip
from medport_local.engine.torchvision_check import check_torchvision
from medport_local.engine.weights import read_shards
from medport_local.phantom import weights_dir
from medport_local.snapshot import open_snapshot

IDS = torch.tensor([[2, 105, 50, 60, 70, 80, 90, 106]])
EMBEDDING = "language_model.model.embed_tokens.weight"
NORM = "language_model.model.norm.weight"


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    """The Gemma phantom without its manifest, to be changed."""
    folder = Path(shutil.copytree(weights_dir("medgemma"), tmp_path / "phantom"))
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture
def pinned(tmp_path: Path) -> Path:
    """The Gemma phantom with its manifest, to be changed."""
    return Path(shutil.copytree(weights_dir("medgemma"), tmp_path / "pinned"))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def shard(folder: Path, shards: int) -> None:
    """Spread the weights over several files with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    where = {key: names[i % shards] for i, key in enumerate(weights)}
    for name in names:
        save_file({key: weights[key] for key in weights if where[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@torch.inference_mode()
def gemma_logits(model: Any, *, images: bool) -> torch.Tensor:
    if not images:
        return model(input_ids=IDS).logits
    config = model.config
    ids = torch.cat([IDS, torch.full((1, config.mm_tokens_per_image), config.image_token_id), IDS], dim=1)
    side = config.vision_config.image_size
    pixels = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side).to(model.dtype)
    kinds = (ids == config.image_token_id).long()
    return model(input_ids=ids, pixel_values=pixels, token_type_ids=kinds).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_phantom_gemma_gives_the_logits_of_transformers(dtype: str) -> None:
    folder = weights_dir("medgemma")
    theirs = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    ours = load_gemma(open_snapshot(folder), device="cpu", dtype=dtype)

    assert torch.equal(gemma_logits(ours.model, images=True), gemma_logits(theirs, images=True))
    assert ours.model.dtype == ours.model.config.dtype == getattr(torch, dtype)


def test_codecs_alone_are_those_of_the_whole_model_and_read_no_weights(phantom: Path) -> None:
    snapshot = open_snapshot(phantom)
    whole = load_gemma(snapshot)
    for shard in snapshot.shards:
        (phantom / shard).unlink()

    codecs = load_codecs(snapshot)

    assert codecs.model is None
    assert (codecs.eos_ids, codecs.image_token_id, codecs.image_tokens) == (
        whole.eos_ids,
        whole.image_token_id,
        whole.image_tokens,
    )
    assert codecs.text.encode("Any finding?") == whole.text.encode("Any finding?")


def test_text_gemma_gives_the_logits_of_transformers(text_gemma_folder: Path) -> None:
    theirs = Gemma3ForCausalLM.from_pretrained(text_gemma_folder, dtype=torch.float32).eval()

    ours = load_gemma(open_snapshot(text_gemma_folder), device="cpu")

    assert torch.equal(gemma_logits(ours.model, images=False), gemma_logits(theirs, images=False))
    assert ours.images is None


def test_phantom_siglip_gives_the_numbers_of_transformers() -> None:
    folder = weights_dir("medsiglip")
    theirs = SiglipModel.from_pretrained(folder, dtype=torch.float32).eval()
    pixels = torch.linspace(-1, 1, 3 * 112 * 112).view(1, 3, 112, 112)

    ours = load_siglip(open_snapshot(folder), device="cpu")

    ids = ours.text.encode(["normal lungs", "a nodule"])
    with torch.inference_mode():
        mine, other = (each(input_ids=ids, pixel_values=pixels) for each in (ours.model, theirs))
    assert torch.equal(mine.logits_per_image, other.logits_per_image)
    assert ours.logit_scale == theirs.logit_scale.item()


def test_sharded_weights_give_the_logits_of_transformers(phantom: Path) -> None:
    shard(phantom, 3)
    theirs = Gemma3ForConditionalGeneration.from_pretrained(phantom, dtype=torch.float32).eval()

    ours = load_gemma(open_snapshot(phantom), device="cpu")

    assert torch.equal(gemma_logits(ours.model, images=True), gemma_logits(theirs, images=True))


@pytest.mark.parametrize(
    "spelling",
    [
        [(r"^language_model\.model\.", "model.language_model."), (r"^(vision_tower|multi_modal)", r"model.\1")],
        [(r"^vision_tower\.vision_model\.", "vision_tower.")],
        [(r"^language_model\.model\.", "model.language_model."), (r"^vision_tower\.vision_model", "vision_tower")],
    ],
)
def test_every_spelling_of_the_weights_names_is_read_as_transformers_reads_it(
    phantom: Path, spelling: list[tuple[str, str]]
) -> None:
    def respell(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            other = name
            for pattern, text in spelling:
                other = re.sub(pattern, text, other)
            weights[other] = weights.pop(name)

    edit(phantom, respell)
    theirs, info = Gemma3ForConditionalGeneration.from_pretrained(
        phantom, dtype=torch.float32, output_loading_info=True
    )

    ours = load_gemma(open_snapshot(phantom), device="cpu").model.state_dict()

    assert not info["unexpected_keys"]
    expected = theirs.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_parameters_and_buffers_are_those_of_transformers() -> None:
    folder = weights_dir("medgemma")
    theirs = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    ours = load_gemma(open_snapshot(folder), device="cpu").model

    mine, other = dict(ours.named_buffers()), dict(theirs.named_buffers())
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in other)
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert not ours.training
    assert ours.config._attn_implementation == ours.config.text_config._attn_implementation == "sdpa"
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()


def test_tied_output_layer_is_the_embedding_itself() -> None:
    model = load_gemma(open_snapshot(weights_dir("medgemma")), device="cpu").model

    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_weights_stored_in_the_wanted_dtype_are_views_of_what_was_read(phantom: Path) -> None:
    (read,) = read_shards(open_snapshot(phantom))
    first = read.tensors[0]

    again = read.view(first)

    assert again.data_ptr() == read.view(first).data_ptr()
    assert torch.equal(again, load_file(phantom / "model.safetensors")[first.name])


def test_weight_that_is_not_aligned_in_the_file_is_read_right(phantom: Path) -> None:
    small = {"a": torch.arange(3, dtype=torch.bfloat16), "b": torch.tensor([1.5, -2.5])}
    header, body = {}, bytearray()
    for name, tensor in small.items():
        raw = tensor.view(torch.uint8).numpy().tobytes()
        kind = "BF16" if tensor.dtype == torch.bfloat16 else "F32"
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        body += raw
    text = json.dumps(header).encode()
    (phantom / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)

    (read,) = read_shards(open_snapshot(phantom))

    assert all(torch.equal(read.view(stored), small[stored.name]) for stored in read.tensors)


def test_forgetting_a_weight_leaves_its_neighbours_alone(tmp_path: Path, phantom: Path) -> None:
    weights = {name: torch.full((5000,), value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    save_file(weights, phantom / "model.safetensors")
    (read,) = read_shards(open_snapshot(phantom))
    views = {stored.name: read.view(stored) for stored in read.tensors}

    read.forget(next(stored for stored in read.tensors if stored.name == "b"))

    assert torch.equal(views["a"], weights["a"])
    assert torch.equal(views["c"], weights["c"])
    assert not torch.equal(views["b"], weights["b"])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda weights: weights.pop(NORM), r"lacks norm\.weight"),
        (lambda weights: weights.pop(EMBEDDING), r"lacks (embed_tokens|lm_head)\.weight"),
        (lambda weights: weights.update({"a.spy": torch.zeros(2)}), r"holds the unknown a\.spy"),
        (lambda weights: weights.update({NORM: torch.zeros(127)}), r"has another shape for .*norm\.weight"),
        (
            lambda weights: weights.update({"model.language_model.norm.weight": weights[NORM].clone()}),
            r"holds twice .*norm\.weight",
        ),
        (lambda weights: weights.update({NORM: torch.zeros(128, dtype=torch.int64)}), "I64, which is not loaded"),
        (
            lambda weights: weights.update({"lm_head.weight": torch.zeros_like(weights[EMBEDDING])}),
            "config.json says are one, and they differ",
        ),
    ],
)
def test_weights_that_are_not_the_models_are_refused(
    phantom: Path, change: Callable[[dict[str, torch.Tensor]], object], fault: str
) -> None:
    edit(phantom, change)

    with pytest.raises(VerificationError, match=fault):
        load_gemma(open_snapshot(phantom), device="cpu")


def test_output_layer_that_repeats_the_embedding_is_taken_as_tied(phantom: Path) -> None:
    edit(phantom, lambda weights: weights.update({"lm_head.weight": weights[EMBEDDING].clone()}))

    model = load_gemma(open_snapshot(phantom), device="cpu").model

    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_weights_overwritten_in_place_after_loading_do_not_matter(phantom: Path) -> None:
    # bfloat16 as stored: these parameters are views of what was read.
    model = load_gemma(open_snapshot(phantom), device="cpu", dtype="bfloat16").model
    before = gemma_logits(model, images=True)

    with open(phantom / "model.safetensors", "r+b") as file:
        file.write(b"\xff" * (phantom / "model.safetensors").stat().st_size)

    assert torch.equal(gemma_logits(model, images=True), before)


def test_weights_are_opened_once_to_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = open_snapshot(weights_dir("medgemma"), defer_weights=True)
    opened: list[str] = []
    real = os.open

    def spy(path: Any, *arguments: Any, **keywords: Any) -> int:
        opened.append(Path(path).name)
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", spy)

    load_gemma(snapshot, device="cpu")

    assert opened.count("model.safetensors") == 1


@pytest.mark.parametrize("defer", [False, True])
def test_weights_changed_after_the_snapshot_was_opened_are_refused(pinned: Path, defer: bool) -> None:
    snapshot = open_snapshot(pinned, defer_weights=defer)
    flip_last_bit(pinned / "model.safetensors")

    with pytest.raises(VerificationError, match=r"model\.safetensors.*hash that the manifest lists"):
        load_gemma(snapshot, device="cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_file_without_a_manifest_changed_after_opening_is_refused(phantom: Path, name: str) -> None:
    snapshot = open_snapshot(phantom)
    flip_last_bit(phantom / name)

    with pytest.raises(VerificationError, match=rf"{name}.*changed after"):
        load_gemma(snapshot, device="cpu")


@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data[:-1], lambda data: data[:5]])
def test_weights_that_grew_or_shrank_after_opening_are_refused(
    phantom: Path, change: Callable[[bytes], bytes]
) -> None:
    snapshot = open_snapshot(phantom)
    weights = phantom / "model.safetensors"
    weights.write_bytes(change(weights.read_bytes()))

    with pytest.raises(VerificationError, match=r"model\.safetensors"):
        load_gemma(snapshot, device="cpu")


def test_link_put_in_place_of_the_weights_is_refused(phantom: Path, tmp_path: Path) -> None:
    snapshot = open_snapshot(phantom)
    (phantom / "model.safetensors").rename(tmp_path / "elsewhere")
    (phantom / "model.safetensors").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(VerificationError, match=r"model\.safetensors.*link"):
        load_gemma(snapshot, device="cpu")


def test_file_exchanged_for_one_with_the_same_bytes_is_the_same_snapshot(phantom: Path) -> None:
    snapshot = open_snapshot(phantom)
    (phantom / "model.safetensors").rename(phantom / "old")
    shutil.copy(phantom / "old", phantom / "model.safetensors")

    assert load_gemma(snapshot, device="cpu").model.dtype == torch.float32


def test_transformers_sees_a_private_copy_that_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = open_snapshot(weights_dir("medgemma"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    with loading._configuration(snapshot) as folder:
        mode = stat.S_IMODE(Path(folder).stat().st_mode)
        names = {path.name for path in Path(folder).iterdir()}
    load_gemma(snapshot, device="cpu")

    assert mode == 0o700
    assert "config.json" in names
    assert not any(name.endswith(".safetensors") for name in names)
    assert list(tmp_path.iterdir()) == []


def test_device_that_is_not_there_is_a_setting_at_fault() -> None:
    with pytest.raises(ConfigError) as fault:
        load_siglip(open_snapshot(weights_dir("medsiglip")), device="cuda:99")

    assert fault.value.field == "device"


def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process's memory is told by Linux only")
    weights = write_text_gemma(tmp_path / "model", layers=4)

    peak = int(run(_PEAK, str(tmp_path / "model")).stdout)

    # 1.05 as a rule; the two ways in which this could go wrong, a second copy and float32, are 2 and more.
    assert weights * 0.9 < peak < weights * 1.3


_PEAK = """
import sys
from medport_local.engine.loading import load_gemma
from medport_local.phantom import weights_dir
from medport_local.snapshot import open_snapshot

def memory(key):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

load_gemma(open_snapshot(weights_dir("medgemma")), device="cpu")
snapshot = open_snapshot(sys.argv[1])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = memory("VmRSS")
gemma = load_gemma(snapshot, device="cpu", dtype="bfloat16")
print(memory("VmHWM") - before)
"""


def test_torchvision_that_does_not_fit_is_named_with_its_remedy(tmp_path: Path) -> None:
    broken_torchvision(tmp_path, "raise RuntimeError('operator torchvision::nms does not exist')")

    told = run(_IMPORT, str(tmp_path)).stdout

    assert told.startswith("ConfigError torchvision pip uninstall torchvision")


@pytest.mark.parametrize("fault", ["raise OSError('undefined symbol')", "import no_such_module"])
def test_every_way_in_which_torchvision_does_not_fit_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    broken_torchvision(tmp_path, fault)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ConfigError, match="does not fit"):
        check_torchvision()


def test_without_torchvision_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])

    check_torchvision()


_IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
try:
    import medport_local.engine.loading
except Exception as fault:
    print(type(fault).__name__, getattr(fault, "field", None), getattr(fault, "remedy", None))
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip


def broken_torchvision(folder: Path, fault: str) -> None:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(fault)


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
