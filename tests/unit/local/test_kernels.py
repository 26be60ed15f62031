"""The linear products against float64, and what must not change them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medport_local.engine import kernels
from medport_local.engine.kernels import FEW_ROWS, MANY_ROWS, Dense, Int8, Workspace, joined, rms_norm

ROWS = (1, 2, 5, MANY_ROWS, MANY_ROWS + 1, 64, 300)
# Not divisible by 8, where products of integers have had limits; one row, one column; and a common size.
SIZES = ((1, 1), (3, 7), (17, 33), (1, 64), (130, 1), (96, 40), (37, 128))
DTYPES = (torch.float32, torch.bfloat16)
EPS = {torch.float32: 2e-6, torch.bfloat16: 2**-8}


def int8_of(out: int, columns: int, *, seed: int = 0, workspace: Workspace | None = None) -> Int8:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (out, columns), generator=random, dtype=torch.int8)
    return Int8(weight, torch.rand(out, generator=random) * 0.02 + 1e-3, workspace)


def with_short_scales(product: Int8) -> Int8:
    return Int8(product.weight, product.scale.bfloat16().float())


def rows_of(count: int, columns: int, dtype: torch.dtype = torch.float32, *, seed: int = 1) -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error_of(product: Int8, x: Tensor) -> Tensor:
    """The distance from the exact product, in units of what is allowed: half a step of each row, and rounding."""
    weight = product.weight.double() * product.scale.double()[:, None]
    exact = x.double() @ weight.T
    step = x.double().abs().amax(-1, keepdim=True) / (127 * 256)
    half_steps = step / 2 * weight.abs().sum(1)
    # Rounded once for the integers; twice, before and after the scale, for a widened weight.
    rounding = 2 * EPS[x.dtype] * exact.abs() + 1e-6 * (x.double().abs() @ weight.abs().T)
    return (product(x).double() - exact).abs() / (half_steps + rounding + 1e-300)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("out", "columns"), SIZES)
def test_an_int8_product_is_the_exact_one_to_half_a_step(
    rows: int, out: int, columns: int, dtype: torch.dtype
) -> None:
    product, x = int8_of(out, columns), rows_of(rows, columns, dtype)

    error = error_of(product, x)

    assert product(x).shape == (rows, out)
    assert product(x).dtype == dtype
    assert error.max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_int8_product_keeps_more_of_its_rows_than_bfloat16_has(dtype: torch.dtype) -> None:
    product, x = int8_of(64, 512), rows_of(4, 512, dtype)

    exact = x.double() @ (product.weight.double() * product.scale.double()[:, None]).T
    rounded = x.float().to(torch.bfloat16).double() + x.double().abs() * 2**-9  # one more rounding to bfloat16
    other = rounded @ (product.weight.double() * product.scale.double()[:, None]).T
    mine = Int8(product.weight, product.scale)(x.float()).double()

    assert (mine - exact).pow(2).mean() < (other - exact).pow(2).mean() / 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_an_int8_product_is_the_same_to_the_bit_whatever_stands_beside_it(dtype: torch.dtype) -> None:
    product, x = int8_of(48, 72), rows_of(MANY_ROWS, 72, dtype)
    alone = torch.cat([product(row[None]) for row in x])

    for count in (2, 3, 17, MANY_ROWS):
        together = product(x[:count])
        assert torch.equal(together, alone[:count]), count


@pytest.mark.parametrize("rows", [1, 3, kernels._FUSED_ROWS])
def test_a_little_product_in_bfloat16_is_one_call_and_the_exact_product_rounded_once(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels._fused_works():
        pytest.skip("torch has no fast product of bfloat16 and int8 here")
    product, x = with_short_scales(int8_of(37, 128)), rows_of(rows, 128, torch.bfloat16)
    exact = x.double() @ (product.weight.double() * product.scale.double()[:, None]).T
    monkeypatch.setattr(torch, "_int_mm", None)  # the other form would call it

    y = product(x)

    spread = x.double().abs() @ (product.weight.double().abs() * product.scale.double()[:, None]).T
    assert ((y.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6 * spread).all()


def test_a_row_of_a_little_product_is_the_same_to_the_bit_whatever_stands_beside_it() -> None:
    product, x = with_short_scales(int8_of(37, 128)), rows_of(kernels._FUSED_ROWS, 128, torch.bfloat16)
    alone = torch.cat([product(row[None]) for row in x])

    for count in range(2, kernels._FUSED_ROWS + 1):
        assert torch.equal(product(x[:count]), alone[:count]), count


@pytest.mark.parametrize("rows", [1, MANY_ROWS, MANY_ROWS + 1, 300])
@pytest.mark.parametrize("capability", ["default", "AVX512"])
def test_scales_of_bfloat16_give_the_exact_product_in_each_form(
    rows: int, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_fused_works", lambda: capability == "AVX512")
    product, x = with_short_scales(int8_of(37, 128)), rows_of(rows, 128, torch.bfloat16)

    error = error_of(product, x)

    assert error.max() <= 1


def test_a_product_takes_rows_in_any_layout() -> None:
    product, x = with_short_scales(int8_of(37, 128)), rows_of(300, 128, torch.bfloat16)

    for count in (1, 3, MANY_ROWS, 300):
        turned = x[:count].t().contiguous().t()
        assert torch.equal(product(turned), product(x[:count])), count


def test_without_a_vectorised_product_of_bfloat16_and_int8_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")

    assert not kernels._fused_works.__wrapped__()


@pytest.mark.parametrize("fault", [RuntimeError, AttributeError, NotImplementedError, TypeError])
def test_a_torch_without_that_product_or_with_another_one_is_found_out(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Tensor:
        raise fault

    def other(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return x.float() @ weight.float().t()

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for replacement in (refuse, other):
        monkeypatch.setattr(torch, "_weight_int8pack_mm", replacement)
        assert not kernels._fused_works.__wrapped__()


def test_rows_of_very_different_size_keep_their_own_precision() -> None:
    product = int8_of(32, 64)
    sizes = torch.tensor([1e-20, 1e-6, 1.0, 1e6, 1e30])
    x = rows_of(5, 64) * sizes[:, None]

    error = error_of(product, x)

    assert error.max() <= 1


@pytest.mark.parametrize("rows", [2, MANY_ROWS, MANY_ROWS + 1])
def test_a_row_of_zeros_gives_zeros(rows: int) -> None:
    product, x = int8_of(16, 24), rows_of(rows, 24)
    x[1] = 0

    y = product(x)

    assert torch.equal(y[1], torch.zeros(16))
    assert y[0].abs().max() > 0


@pytest.mark.parametrize("rows", [1, MANY_ROWS - 1, MANY_ROWS + 1])
def test_what_is_no_number_is_not_hidden_and_stays_in_its_row(rows: int) -> None:
    product, x = int8_of(16, 24), rows_of(rows + 1, 24)
    x[0, 3] = float("nan")

    y = product(x)

    assert y[0].isnan().all()
    assert y[1:].isfinite().all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=40))
def test_halves_hold_each_number_to_half_a_step(numbers: list[float]) -> None:
    x = torch.tensor([numbers])

    parts, step = Workspace().halves(x)

    whole = parts[0].double() * 256 + parts[1].double()
    assert int(parts[0].min()) >= -127
    assert ((whole * step.double() - x.double()).abs() <= step.double() * 0.502).all()


def test_products_that_share_a_workspace_do_not_mix_their_rows() -> None:
    workspace = Workspace()
    one, two = (int8_of(24, 40, seed=seed, workspace=workspace) for seed in (3, 4))
    apart = [int8_of(24, 40, seed=seed) for seed in (3, 4)]
    first, second = rows_of(3, 40, seed=5), rows_of(3, 40, seed=6)

    together = [one(first), two(first), one(second), two(second), one(first)]

    a, b = apart
    for mine, other in zip(together, [a(first), b(first), a(second), b(second), a(first)], strict=True):
        assert torch.equal(mine, other)
    assert not any(torch.equal(x, y) for x, y in pairwise(together))


def test_widened_weights_of_two_shapes_can_share_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_BLOCK_BYTES", 1000)  # several blocks, the last one short
    workspace = Workspace()
    small, large = int8_of(13, 40, workspace=workspace), int8_of(101, 72, workspace=workspace)

    for product, columns in ((small, 40), (large, 72), (small, 40)):
        x = rows_of(MANY_ROWS + 1, columns)
        assert error_of(product, x).max() <= 1


@pytest.mark.parametrize("rows", [1, 40])
def test_without_a_fast_product_of_integers_the_weight_is_widened(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("the product of integers was used")

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    product, x = int8_of(48, 72), rows_of(rows, 72, torch.bfloat16)
    monkeypatch.setattr(torch, "_int_mm", refuse)

    error = error_of(product, x)

    assert error.max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_int8_table_gives_the_rows_of_the_full_one(dtype: torch.dtype) -> None:
    table, ids = int8_of(50, 12), torch.tensor([0, 49, 7, 7])
    full = (table.weight.float() * table.scale[:, None]).to(dtype)

    rows = table.rows(ids, dtype)

    assert torch.equal(rows, F.embedding(ids, full))


def test_the_bytes_of_an_int8_weight_are_half_of_bfloat16_and_its_scales() -> None:
    assert int8_of(50, 12).nbytes == 50 * 12 + 50 * 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1, 100])
@pytest.mark.parametrize(("out", "columns"), SIZES)
def test_a_dense_product_is_the_exact_one_to_its_rounding(
    rows: int, out: int, columns: int, dtype: torch.dtype
) -> None:
    weight, x = rows_of(out, columns, dtype, seed=2), rows_of(rows, columns, dtype)
    exact = x.double() @ weight.double().T

    y = Dense(weight)(x)

    spread = x.double().abs() @ weight.double().abs().T
    logits = Dense(weight).logits(x)
    assert y.dtype == dtype
    assert ((y.double() - exact).abs() <= EPS[dtype] * exact.abs() + 1e-6 * spread + 1e-7).all()
    assert logits.dtype == torch.float32
    assert logits.is_contiguous()
    assert torch.equal(logits, y.float())


def test_logits_of_a_long_vocabulary_are_made_in_blocks_and_the_same() -> None:
    out = 2 * 8192 + 77
    weight, x = rows_of(out, 24, torch.bfloat16, seed=2), rows_of(3, 24, torch.bfloat16)
    dense = Dense(weight)
    small = Int8((weight * 40).round().clamp(-127, 127).to(torch.int8), torch.full((out,), 0.025))

    assert torch.equal(dense.logits(x), dense(x).float())
    assert (small.logits(x) - small(x).float()).abs().max() <= 2**-8 * small(x).abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 64, 65, 200])
def test_a_norm_is_the_same_for_few_rows_and_for_many(rows: int, dtype: torch.dtype) -> None:
    x, weight = rows_of(rows, 48, dtype), 1 + rows_of(1, 48)[0]
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()

    y = rms_norm(x, weight, 1e-6)

    assert y.dtype == dtype
    assert ((y.double() - exact).abs() <= EPS[dtype] * exact.abs() + 1e-7).all()


def test_neighbours_in_memory_are_one_product_and_others_are_not() -> None:
    both, x = rows_of(30, 16, torch.bfloat16, seed=2), rows_of(3, 16, torch.bfloat16)
    first, second = Dense(both[:10]), Dense(both[10:])

    one = joined(first, second)

    assert one is not None
    assert one.weight.data_ptr() == both.data_ptr()
    assert torch.equal(one(x), torch.cat([first(x), second(x)], dim=1))
    assert joined(second, first) is None
    assert joined(first, Dense(both[10:].clone())) is None
