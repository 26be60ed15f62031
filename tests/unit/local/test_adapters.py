"""Adapters: what is loaded, what is refused, and that they compute what PEFT computes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

from medport.errors import ConfigError, InputError, VerificationError
from medport_local.engine.adapters import Adapter, Side, Target, check_name, load_adapter, of_rows, parse_model
from medport_local.engine.decoder import Decoder
from medport_local.engine.lora import Pair
from medport_local.phantom import weights_dir
from medport_local.snapshot import digest_of
from medport_local.snapshot_file import FileEntry

CPU = torch.device("cpu")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IDS = torch.tensor([[2, 105, 300, 301, 302, 107], [2, 105, 310, 311, 312, 107], [2, 105, 320, 321, 322, 107]])

# PEFT asks transformers about a name that transformers has given another.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

SMALL = Gemma3TextConfig(
    hidden_size=8,
    intermediate_size=10,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=6,
    vocab_size=16,
)
TARGET = Target.of(SMALL, dtype=torch.float32, device=CPU, model_id="google/medgemma-4b-it")
Change = Callable[[dict[str, Any], dict[str, Tensor]], None]


# What PEFT computes


@pytest.fixture(scope="module")
def phantom() -> Any:
    return Gemma3ForConditionalGeneration.from_pretrained(weights_dir("medgemma"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The phantom with adapters of PEFT's making, and where they are saved, each in a directory of its name."""
    base = Gemma3ForConditionalGeneration.from_pretrained(weights_dir("medgemma"), dtype=torch.float32)
    everywhere = rf".*language_model.*\.({'|'.join(LINEARS)})"
    configs = {
        "plain": peft.LoraConfig(r=4, lora_alpha=8, target_modules=everywhere),
        "stable": peft.LoraConfig(r=8, lora_alpha=2, use_rslora=True, target_modules=everywhere),
        "some": peft.LoraConfig(
            r=4,
            lora_alpha=3,
            target_modules=[f"language_model.layers.{layer}.self_attn.q_proj" for layer in range(6)]
            + [f"language_model.layers.{layer}.mlp.down_proj" for layer in range(6)],
            layers_to_transform=[1, 4],
            rank_pattern={"layers.1.self_attn.q_proj": 2},
            alpha_pattern={"down_proj": 5, "^model.language_model.layers.1.self_attn.q_proj": 7},
        ),
    }
    torch.manual_seed(0)
    model: Any = None
    for name, config in configs.items():
        config.init_lora_weights = False
        if model is None:
            model = peft.get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    folder = tmp_path_factory.mktemp("adapters")
    model.save_pretrained(folder)
    return model.eval(), folder


@contextmanager
def hooked(model: Any, layers: Any, side: Side | None) -> Iterator[Any]:
    """A transformers model whose linears add a side as our decoder does."""

    def hook(layer: int, name: str) -> Callable[[Any, tuple[Tensor], Tensor], Tensor]:
        def run(module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
            y = output.flatten(0, 1).clone()
            return output if side is None else side(y, args[0].flatten(0, 1), layer, name).view_as(output)

        return run

    handles = [
        getattr(owner, name).register_forward_hook(hook(i, name))
        for i, module in enumerate(layers)
        for owner, names in ((module.self_attn, LINEARS[:4]), (module.mlp, LINEARS[4:]))
        for name in names
    ]
    yield model
    for handle in handles:
        handle.remove()


@torch.inference_mode()
def logits_with(model: Any, layers: Any, adapters: Sequence[Adapter | None]) -> Tensor:
    side = of_rows([adapter for adapter in adapters for _ in range(IDS.shape[1])])
    with hooked(model, layers, side) as changed:
        logits: Tensor = changed(input_ids=IDS[: len(adapters)]).logits
    return logits


@torch.inference_mode()
def their_logits(model: Any, name: str | None, ids: Tensor) -> Tensor:
    if name is None:
        with model.disable_adapter():
            return model(input_ids=ids).logits  # type: ignore[no-any-return]
    model.set_adapter(name)
    return model(input_ids=ids).logits  # type: ignore[no-any-return]


def phantom_target(model: Any) -> Target:
    return Target.of(
        model.config.get_text_config(), dtype=torch.float32, device=CPU, model_id="medport/medgemma-phantom"
    )


@pytest.mark.parametrize("name", ["plain", "stable", "some"])
def test_adapter_gives_the_logits_that_peft_gives(name: str, phantom: Any, theirs: tuple[Any, Path]) -> None:
    model, folder = theirs
    ours = load_adapter(folder / name, phantom_target(phantom))
    layers = phantom.model.language_model.layers

    logits = logits_with(phantom, layers, [ours])

    expected = their_logits(model, name, IDS[:1])
    assert (expected - their_logits(model, None, IDS[:1])).abs().max() > 0.1
    assert (logits - expected).abs().max() <= 1e-5


@torch.inference_mode()
def test_decoder_with_an_adapter_beside_it_gives_the_logits_that_peft_gives(
    phantom: Any, theirs: tuple[Any, Path]
) -> None:
    model, folder = theirs
    ours = load_adapter(folder / "plain", phantom_target(phantom))
    decoder = Decoder(phantom.model.language_model, phantom.lm_head)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (each.transpose(0, 1)[None] for each in (q, k, v))
        scale = decoder.shape.scale
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return mixed[0].transpose(0, 1).flatten(1)

    rows = len(IDS[0])
    hidden = decoder.forward(decoder.embed(IDS[0]), torch.arange(rows), attend, of_rows([ours] * rows))

    expected = their_logits(model, "plain", IDS[:1])[0]
    assert (decoder.logits(hidden) - expected).abs().max() <= 1e-5


def test_mixed_batch_gives_each_row_its_own_adapter(phantom: Any, theirs: tuple[Any, Path]) -> None:
    model, folder = theirs
    plain, stable = (load_adapter(folder / name, phantom_target(phantom)) for name in ("plain", "stable"))
    layers = phantom.model.language_model.layers

    for names, adapters in (
        (("plain", None, "stable"), [plain, None, stable]),
        (("plain", "stable", "plain"), [plain, stable, plain]),
    ):
        logits = logits_with(phantom, layers, adapters)

        for row, name in enumerate(names):
            expected = their_logits(model, name, IDS)[row]
            assert (logits[row] - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("bare", [list(LINEARS), ["q_proj", "v_proj"]])
def test_adapter_of_a_text_model_gives_the_logits_that_peft_gives(bare: list[str], tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = Gemma3ForCausalLM(Gemma3TextConfig(**{**SMALL.to_dict(), "vocab_size": 400, "initializer_range": 0.3}))
    target = Target.of(base.config, dtype=torch.float32, device=CPU, model_id="text")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=bare, init_lora_weights=False)
    model: Any = peft.get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "text")
    expected = their_logits(model, "default", IDS[:1])
    without = model.unload()

    logits = logits_with(without, without.model.layers, [load_adapter(tmp_path / "text", target)])

    assert (expected - logits_with(without, without.model.layers, [None])).abs().max() > 1e-2
    assert (logits - expected).abs().max() <= 1e-5


def test_target_has_the_shapes_of_the_real_modules(phantom: Any) -> None:
    shapes = {
        (i, name): (owner.get_submodule(name).in_features, owner.get_submodule(name).out_features)
        for i, module in enumerate(phantom.model.language_model.layers)
        for owner, names in ((module.self_attn, LINEARS[:4]), (module.mlp, LINEARS[4:]))
        for name in names
    }

    assert phantom_target(phantom).shapes == shapes


# Rows and groups


def random_adapter(seed: int, places: Sequence[tuple[int, str]], dtype: torch.dtype = torch.float32) -> Adapter:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return Adapter(
        name=f"a{seed}",
        sha256="",
        weights={
            place: Pair(
                draw(2 + seed, TARGET.shapes[place][0]), draw(TARGET.shapes[place][1], 2 + seed), 0.5 + seed
            )
            for place in places
        },
        base=None,
        fits_base=None,
    )


CHOICES = [None, random_adapter(0, [(0, "q_proj"), (1, "up_proj")]), random_adapter(1, [(0, "q_proj")])]


@given(
    st.lists(st.sampled_from(CHOICES), min_size=1, max_size=9), st.sampled_from([(0, "q_proj"), (1, "up_proj")])
)
def test_side_is_what_each_row_gets_alone(adapters: list[Adapter | None], place: tuple[int, str]) -> None:
    inputs, outputs = TARGET.shapes[place]
    x, y = torch.randn(len(adapters), inputs), torch.randn(len(adapters), outputs)
    expected = y.double()
    for row, adapter in enumerate(adapters):
        pair = None if adapter is None else adapter.weights.get(place)
        if pair is not None:
            expected[row] += pair.b.double() @ (pair.a.double() @ x[row].double()) * pair.scale

    side = of_rows(adapters)

    result = y if side is None else side(y.clone(), x, *place)
    assert torch.allclose(result.double(), expected, atol=1e-5)


def test_rows_without_adapters_have_no_side() -> None:
    assert of_rows([None, None]) is None
    assert of_rows([]) is None


@pytest.mark.parametrize("pattern", [[0, 0, 0], [0, None, 0]])
def test_side_in_bfloat16_rounds_little(pattern: list[int | None]) -> None:
    place = (0, "q_proj")
    adapter = random_adapter(0, [place], torch.bfloat16)
    inputs, outputs = TARGET.shapes[place]
    x, y = torch.randn(3, inputs).bfloat16(), torch.randn(3, outputs).bfloat16()
    pair = adapter.weights[place]
    added = (x.double() @ pair.a.double().T) @ pair.b.double().T * pair.scale
    kept = torch.tensor([each is not None for each in pattern])[:, None]

    side = of_rows([None if each is None else adapter for each in pattern])

    assert side is not None
    result = side(y.clone(), x, *place)
    assert result.dtype == torch.bfloat16
    assert (result.double() - torch.where(kept, y + added, y.double())).abs().max() < 0.02 * added.abs().max()


# What is loaded


def key(layer: int, name: str, side: str, root: str = "model.language_model") -> str:
    owner = "self_attn" if name in LINEARS[:4] else "mlp"
    return f"base_model.model.{root}.layers.{layer}.{owner}.{name}.lora_{side}.weight"


def settings() -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["q_proj", "down_proj"],
        "base_model_name_or_path": "google/medgemma-4b-it",
        "bias": "none",
        "lora_dropout": 0.1,
        "use_dora": False,
        "megatron_core": "megatron.core",
        "a_setting_that_is_off": None,
    }


def tensors(root: str = "model.language_model") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    result = {}
    for (layer, name), (inputs, outputs) in TARGET.shapes.items():
        if name in ("q_proj", "down_proj"):
            result[key(layer, name, "A", root)] = torch.randn(2, inputs, generator=generator)
            result[key(layer, name, "B", root)] = torch.randn(outputs, 2, generator=generator)
    return result


def write(folder: Path, config: Mapping[str, Any], weights: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "chest", settings(), tensors())


def test_adapter_tells_what_it_is(folder: Path) -> None:
    adapter = load_adapter(folder, TARGET)

    assert (adapter.name, adapter.rank, adapter.linears) == ("chest", 2, ("down_proj", "q_proj"))
    assert adapter.nbytes == sum(tensor.nbytes for tensor in tensors().values())
    assert (adapter.base, adapter.fits_base) == ("google/medgemma-4b-it", True)
    assert {pair.scale for pair in adapter.weights.values()} == {1.5}


def test_digest_is_that_of_the_table_of_the_two_files_whatever_lies_beside_them(folder: Path) -> None:
    table = {
        path.name: FileEntry(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size_bytes=path.stat().st_size)
        for path in folder.iterdir()
    }
    (folder / "README.md").write_text("About the adapter.")

    assert load_adapter(folder, TARGET).sha256 == digest_of(table)


def test_digest_changes_with_one_weight(folder: Path) -> None:
    before = load_adapter(folder, TARGET).sha256
    changed = tensors()
    changed[key(0, "q_proj", "B")][0, 0] += 1
    write(folder, settings(), changed)

    assert load_adapter(folder, TARGET).sha256 != before


@pytest.mark.parametrize("root", ["model.language_model", "language_model.model", "model"])
def test_names_of_every_transformers_version_are_understood(root: str, tmp_path: Path) -> None:
    adapter = load_adapter(write(tmp_path / "chest", settings(), tensors(root)), TARGET)

    assert torch.equal(adapter.weights[1, "q_proj"].a, tensors()[key(1, "q_proj", "A")])
    assert torch.equal(adapter.weights[1, "q_proj"].b, tensors()[key(1, "q_proj", "B")])


def test_weights_are_in_the_models_dtype(folder: Path) -> None:
    target = Target.of(SMALL, dtype=torch.bfloat16, device=CPU, model_id="base")

    adapter = load_adapter(folder, target)

    assert {half.dtype for pair in adapter.weights.values() for half in (pair.a, pair.b)} == {torch.bfloat16}
    assert torch.equal(adapter.weights[0, "q_proj"].a, tensors()[key(0, "q_proj", "A")].bfloat16())


@pytest.mark.parametrize(
    ("base", "fits"),
    [
        ("google/medgemma-4b-it", True),
        ("/models/medgemma-4b-it/", True),
        ("google/medgemma-27b-it", False),
        ("", None),
        (None, None),
    ],
)
def test_another_base_is_told_and_not_refused(base: str | None, fits: bool | None, tmp_path: Path) -> None:
    config = {**settings(), "base_model_name_or_path": base}

    assert load_adapter(write(tmp_path / "chest", config, tensors()), TARGET).fits_base is fits


def test_int8_weights_of_the_base_are_the_base(tmp_path: Path) -> None:
    target = replace(TARGET, model_id=f"{TARGET.model_id} int8")

    adapter = load_adapter(write(tmp_path / "chest", settings(), tensors()), target)

    assert adapter.fits_base is True


def test_name_can_be_another_than_the_directorys(folder: Path) -> None:
    assert load_adapter(folder, TARGET, name="v2.thorax").name == "v2.thorax"


def test_ranks_and_scales_of_patterns_are_pefts(tmp_path: Path) -> None:
    config = {
        **settings(),
        "use_rslora": True,
        "rank_pattern": {"layers.1.self_attn.q_proj": 4},
        "alpha_pattern": {"q_proj": 8, "layers.1.self_attn.q_proj": 99},
    }
    weights = tensors()
    weights[key(1, "q_proj", "A")] = torch.ones(4, 8)
    weights[key(1, "q_proj", "B")] = torch.ones(12, 4)

    adapter = load_adapter(write(tmp_path / "chest", config, weights), TARGET)

    scales = {place: round(pair.scale, 6) for place, pair in adapter.weights.items()}
    assert scales == {
        (0, "q_proj"): round(8 / 2**0.5, 6),
        (1, "q_proj"): 4.0,  # the first pattern that fits
        (0, "down_proj"): round(3 / 2**0.5, 6),
        (1, "down_proj"): round(3 / 2**0.5, 6),
    }
    assert adapter.rank == 4


def test_layers_left_out_by_the_configuration_may_be_missing(tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in tensors().items() if ".layers.1." in name}
    config = {**settings(), "layers_to_transform": 1}

    adapter = load_adapter(write(tmp_path / "chest", config, weights), TARGET)

    assert {layer for layer, _ in adapter.weights} == {1}


def test_excluded_modules_may_be_missing(tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in tensors().items() if ".0.self_attn" not in name}
    config = {**settings(), "exclude_modules": ["layers.0.self_attn.q_proj"]}

    adapter = load_adapter(write(tmp_path / "chest", config, weights), TARGET)

    assert set(adapter.weights) == {(1, "q_proj"), (0, "down_proj"), (1, "down_proj")}


def test_module_named_by_its_whole_path_is_wanted_in_any_layer(tmp_path: Path) -> None:
    """As PEFT reads it: the choice of layers is for names that are shorter."""
    weights = {name: tensor for name, tensor in tensors().items() if "q_proj" in name}
    config = {
        **settings(),
        "target_modules": ["model.language_model.layers.0.self_attn.q_proj", "q_proj"],
        "layers_to_transform": [1],
    }

    adapter = load_adapter(write(tmp_path / "chest", config, weights), TARGET)

    assert set(adapter.weights) == {(0, "q_proj"), (1, "q_proj")}


# What is refused


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("adapter_model.bin", "not a file of an adapter"),
        ("training_args.bin", "not a file of an adapter"),
        ("modeling.py", "not a file of an adapter"),
        ("tokenizer.json", "not a file of an adapter"),
        ("checkpoint-10/adapter_config.json", "directory"),
    ],
)
def test_other_files_are_refused_by_name(name: str, fault: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")

    with pytest.raises(VerificationError, match=fault) as refused:
        load_adapter(folder, TARGET)
    assert refused.value.field == f"chest/{name.partition('/')[0]}"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "README.md"])
def test_links_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (folder / name).exists():
        (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)

    with pytest.raises(VerificationError, match="link") as refused:
        load_adapter(folder, TARGET)
    assert refused.value.field == f"chest/{name}"


def test_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    os.mkfifo(folder / "adapter_config.json")

    with pytest.raises(VerificationError, match="not a regular file"):
        load_adapter(folder, TARGET)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()

    with pytest.raises(VerificationError, match="missing") as refused:
        load_adapter(folder, TARGET)
    assert refused.value.field == f"chest/{name}"


def test_missing_directory_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapter directory"):
        load_adapter(tmp_path / "nowhere", TARGET)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"peft_type": None}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"use_qalora": True}, "use_qalora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["weight"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"a_setting_of_tomorrow": 1}, "a_setting_of_tomorrow"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"init_lora_weights": 1}, "init_lora_weights"),
        ({"r": 0}, "r is"),
        ({"r": True}, "r is"),
        ({"r": "2"}, "r is"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"rank_pattern": {".*": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "alpha_pattern"),
        ({"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern"),
        ({"rank_pattern": [2]}, "rank_pattern"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": [7]}, "target_modules"),
        ({"target_modules": ["q_proj", "down_proj", "lm_head"]}, "lm_head"),
        ({"target_modules": ["q_proj", "down_proj", "out_proj"]}, "out_proj"),
        ({"exclude_modules": 3}, "exclude_modules"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform"),
        ({"layers_pattern": "blocks"}, "layers_pattern"),
    ],
)
def test_setting_that_is_not_served_is_refused_by_name(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "chest", {**settings(), **change}, tensors())

    with pytest.raises(VerificationError, match=named) as refused:
        load_adapter(folder, TARGET)
    assert refused.value.field == "chest/adapter_config.json"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_configuration_that_is_no_object_is_refused(content: bytes, folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(content)

    with pytest.raises(VerificationError, match="JSON"):
        load_adapter(folder, TARGET)


def put(name: str, tensor: Tensor) -> Change:
    def change(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        weights[name] = tensor

    return change


def drop(*names: str) -> Change:
    def change(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        for name in names:
            del weights[name]

    return change


def everything(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    weights.clear()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (drop(key(0, "q_proj", "A")), "lacks lora_A of model.language_model.layers.0.self_attn.q_proj"),
        (drop(key(0, "q_proj", "B")), "lacks lora_B of model.language_model.layers.0.self_attn.q_proj"),
        (drop(key(1, "q_proj", "A"), key(1, "q_proj", "B")), "lacks weights for .*1.self_attn.q_proj"),
        (everything, "no weights"),
        (put(key(0, "q_proj", "A"), torch.ones(3, 8)), r"lora_A .* is \(3, 8\) and must be \(2, 8\)"),
        (put(key(0, "q_proj", "A"), torch.ones(2, 9)), r"lora_A .* is \(2, 9\) and must be \(2, 8\)"),
        (put(key(0, "q_proj", "B"), torch.ones(2, 12)), r"lora_B .* is \(2, 12\) and must be \(12, 2\)"),
        (put(key(0, "q_proj", "B"), torch.full((12, 2), float("nan"))), "not finite"),
        (put(key(0, "q_proj", "B"), torch.full((12, 2), float("-inf"))), "not finite"),
        (put(key(0, "q_proj", "B"), torch.ones(12, 2, dtype=torch.int32)), "which is not loaded"),
        (put(key(0, "up_proj", "A"), torch.ones(2, 8)), "holds weights for .*up_proj"),
        (put(key(2, "q_proj", "A"), torch.ones(2, 8)), "no such layer"),
        (put(key(0, "q_proj", "A", "model"), torch.ones(2, 8)), "several models"),
        (put("base_model.model.lm_head.lora_A.weight", torch.ones(2, 8)), "lm_head"),
        (put("base_model.model.lm_head.weight", torch.ones(2, 8)), "lm_head"),
        (
            put(key(0, "q_proj", "A", "model.vision_tower.encoder"), torch.ones(2, 8)),
            "vision_tower.* not LoRA on a linear of the language model",
        ),
        (put(key(0, "q_proj", "A").replace("self_attn", "mlp"), torch.ones(2, 8)), "not LoRA on a linear"),
        (put(key(0, "q_proj", "A").replace("lora_A", "lora_magnitude"), torch.ones(2, 8)), "not LoRA on a linear"),
        (put(key(0, "q_proj", "A").replace(".0.", ".00."), torch.ones(2, 8)), "not LoRA on a linear"),
        (put(key(0, "q_proj", "A") + "\n", torch.ones(2, 8)), "not LoRA on a linear"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Change, fault: str, tmp_path: Path) -> None:
    config, weights = settings(), tensors()
    change(config, weights)

    with pytest.raises(VerificationError, match=fault) as refused:
        load_adapter(write(tmp_path / "chest", config, weights), TARGET)
    assert refused.value.field == "chest/adapter_model.safetensors"


def test_number_that_overflows_the_models_dtype_is_refused(tmp_path: Path) -> None:
    weights = tensors()
    weights[key(0, "q_proj", "B")][0, 0] = torch.finfo(torch.float32).max
    folder = write(tmp_path / "chest", settings(), weights)

    load_adapter(folder, TARGET)
    with pytest.raises(VerificationError, match="not finite"):
        load_adapter(folder, Target.of(SMALL, dtype=torch.bfloat16, device=CPU, model_id="base"))


@given(data=st.data())
def test_damaged_weights_are_refused_or_loaded_and_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write(tmp_path_factory.mktemp("x") / "chest", settings(), tensors())
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 400))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, place]))])

    with suppress(VerificationError):
        load_adapter(folder, TARGET)


# Names


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("google/medgemma-4b-it", ("google/medgemma-4b-it", None)),
        ("google/medgemma-4b-it+chest", ("google/medgemma-4b-it", "chest")),
        ("base+v1.2_x-y", ("base", "v1.2_x-y")),
        ("+chest", ("", "chest")),
        ("", ("", None)),
    ],
)
def test_model_is_split_into_base_and_adapter(text: str, parts: tuple[str, str | None]) -> None:
    assert parse_model(text) == parts


BAD_NAMES = ["", "Chest", "-chest", ".chest", "a b", "a/b", "../a", "a+b", "a\n", "ä", "a" * 64]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_model(f"base+{name}")
    assert refused.value.field == "model"
    with pytest.raises(ConfigError):
        check_name(name)


def test_directory_whose_name_is_no_adapters_name_needs_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "Chest 1", settings(), tensors())

    with pytest.raises(ConfigError, match="NAME=DIRECTORY"):
        load_adapter(folder, TARGET)
    assert load_adapter(folder, TARGET, name="chest-1").name == "chest-1"
