"""Causal layers in blocks give what they give for the whole."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.streaming import Blocks, CausalConv1d, CausalConvTranspose1d, State


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    frames=st.integers(1, 3),
)
def test_a_causal_convolution_in_blocks_equals_the_whole(
    kernel: int, stride: int, dilation: int, frames: int
) -> None:
    kernel = max(kernel, stride)
    layer = CausalConv1d(2, 3, kernel, stride=stride, dilation=dilation).double()
    wave = torch.randn(1, 2, 12 * stride, dtype=torch.float64)
    state: State = {}
    parts = [layer(block, state) for block in wave.split(frames * stride, dim=2)]
    assert torch.allclose(torch.cat(parts, dim=2), layer(wave))
    future = torch.cat([wave, torch.randn(1, 2, 5, dtype=torch.float64)], dim=2)
    assert torch.allclose(layer(future)[..., :12], layer(wave))
    assert layer(future).shape[2] == -(-future.shape[2] // stride)


@settings(max_examples=40, deadline=None)
@given(kernel=st.integers(1, 13), stride=st.integers(1, 4), frames=st.integers(1, 3))
def test_causal_upsampling_in_blocks_equals_the_whole(
    kernel: int, stride: int, frames: int
) -> None:
    kernel = max(kernel, stride)
    layer = CausalConvTranspose1d(2, 3, kernel, stride=stride).double()
    codes = torch.randn(1, 2, 9, dtype=torch.float64)
    state: State = {}
    parts = [layer(block, state) for block in codes.split(frames, dim=2)]
    assert torch.allclose(torch.cat(parts, dim=2), layer(codes))
    reference = torch.nn.functional.conv_transpose1d(codes, layer.weight, layer.bias, stride)
    assert torch.allclose(layer(codes), reference[..., : 9 * stride])


@given(sizes=st.lists(st.integers(0, 9), max_size=8), size=st.integers(1, 5))
def test_blocks_hold_everything_that_was_pushed(sizes: list[int], size: int) -> None:
    wave = torch.arange(float(sum(sizes)))[None]
    blocks = Blocks(size)
    given_back = [block for part in wave.split(sizes, dim=1) for block in blocks.push(part)]
    assert all(block.shape == (1, size) for block in given_back)
    last = blocks.finish()
    if last is not None:
        block, real = last
        assert block.shape == (1, size)
        given_back.append(block[:, :real])
    assert torch.equal(torch.cat([wave[:, :0], *given_back], dim=1), wave)
