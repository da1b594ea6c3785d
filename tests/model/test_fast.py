"""Layers made ready to decode compute what the plain ones do, whatever shares the call."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_lm import small_lm

from speechlm.errors import ConfigError
from speechlm.model import fast_linear as kernels
from speechlm.model.fast import prepare
from speechlm.model.fast_linear import ROWS_ONE_BY_ONE, Int8Linear, PackedLinear, fast_linear


def linear(num_in: int, num_out: int, *, bias: bool, seed: int = 0) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(num_in, num_out, bias=bias).requires_grad_(False)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_in=st.integers(2, 90),
    num_out=st.integers(1, 40),
    num_rows=st.integers(1, 3 * ROWS_ONE_BY_ONE),
    bias=st.booleans(),
    scale=st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 1e3]),
    offset=st.sampled_from([0.0, -3.0, 3.0]),
)
def test_an_int8_layer_gives_each_row_the_same_bits_in_any_company(
    seed: int, num_in: int, num_out: int, num_rows: int, bias: bool, scale: float, offset: float
) -> None:
    layer = Int8Linear(linear(num_in, num_out, bias=bias, seed=seed))
    rows = (torch.randn(num_rows, num_in) + offset) * scale
    together = layer(rows)
    alone = torch.cat([layer(row[None]) for row in rows])
    assert torch.equal(together, alone)
    assert torch.equal(
        layer._all_at_once(rows * kernels.WIDEN) + (layer.bias if bias else 0), alone
    )


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e4])
def test_an_int8_layer_is_within_a_hundredth_of_the_plain_one(scale: float) -> None:
    plain = linear(256, 128, bias=False)
    rows = torch.randn(4, 256) * scale
    error = Int8Linear(plain)(rows) - plain(rows)
    assert error.norm() < 0.012 * plain(rows).norm()


def test_an_int8_layer_needs_no_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, rows = linear(64, 32, bias=True), torch.randn(3, 2, 64)
    expected = Int8Linear(plain)(rows)
    _, coarse = kernels._fused_kernel()
    monkeypatch.setattr(kernels, "_fused_kernel", lambda: (None, coarse))
    assert torch.equal(Int8Linear(plain)(rows), expected)


@pytest.mark.parametrize("num_rows", [1, 2, 40])
@pytest.mark.parametrize("num_out", [1, 7, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_computes_what_the_plain_one_does(
    num_rows: int, num_out: int, bias: bool
) -> None:
    plain, rows = linear(48, num_out, bias=bias), torch.randn(2, num_rows, 48)
    torch.testing.assert_close(PackedLinear(plain)(rows), plain(rows), atol=1e-5, rtol=1e-5)


def test_unknown_weights_are_named() -> None:
    with pytest.raises(ConfigError, match="expected weights float32, bfloat16 or int8, got 'int4'"):
        prepare(small_lm().decoder, "int4")  # type: ignore[arg-type]


def test_a_layer_elsewhere_than_on_a_cpu_stays_as_it_is() -> None:
    plain = torch.nn.Linear(4, 4, device="meta")
    assert fast_linear(plain, "float32") is plain
