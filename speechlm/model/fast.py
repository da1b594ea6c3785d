"""A decoder made ready to decode: fewer, larger matrix products, by the fastest kernels here.

Decoding reads every weight for every position, so it is as fast as memory is read. On a CPU
the plain product of one position reaches a third of that, so here it is cut into one slice a
thread; products of a few positions use weights that are packed once. bfloat16 halves what is
read, int8 quarters it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechlm.errors import ConfigError
from speechlm.model.decoder import Attention, Decoder, FeedForward
from speechlm.model.norm import RMSNorm

Weights = Literal["float32", "bfloat16", "int8"]


def prepare(decoder: Decoder, weights: Weights = "float32") -> Decoder:
    """A decoder with the same parameters, for inference only.

    Args:
        decoder: On its device; it is left as it is, and shares what is not converted.
        weights: ``bfloat16`` computes in it everywhere. ``int8`` keeps matrices as int8 with a
            scale a row and quantizes what they read, a scale a position; sums are exact, so a
            position's result does not depend on what else is computed with it. CPU only.

    Raises:
        ConfigError: Unknown ``weights``, or int8 elsewhere than on a CPU.
    """
    if weights not in ("float32", "bfloat16", "int8"):
        raise ConfigError(f"expected weights float32, bfloat16 or int8, got {weights!r}")
    if weights == "int8" and decoder.device.type != "cpu":
        raise ConfigError(f"int8 weights are for the CPU, the LM is on {decoder.device}")
    if weights == "bfloat16":
        ready = copy.deepcopy(decoder).eval().bfloat16()
    else:
        shared = {id(parameter): parameter for parameter in decoder.parameters()}
        ready = copy.deepcopy(decoder, memo=cast(dict[int, Any], shared)).eval()
    ready.requires_grad_(False)
    for module in list(ready.modules()):
        if isinstance(module, Attention):
            module.qkv_proj = _joined((module.q_proj, module.k_proj, module.v_proj))
        elif isinstance(module, FeedForward) and module.gate_proj is not None:
            module.gate_up_proj = _joined((module.gate_proj, module.up_proj))
    _replace(ready, weights)
    return ready


class FastRMSNorm(nn.Module):
    """RMSNorm in four operations: a root of summed squares, and eps as one more square."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        dim = len(norm.weight)
        self.weight = norm.weight.detach() * dim**0.5
        self.floor = torch.tensor((norm.eps * dim) ** 0.5, device=norm.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        normed: Tensor = (wide / torch.hypot(length, self.floor)).to(x.dtype) * self.weight
        return normed


def fast_linear(linear: nn.Linear, weights: Weights) -> nn.Module:
    """The quickest way to compute one linear layer."""
    if linear.weight.device.type != "cpu":
        return linear
    if weights == "int8":
        return Int8Linear(linear)
    return PackedLinear(linear)


class PackedLinear(nn.Module):
    """A linear layer on a CPU, with its weights as they are and packed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.packed = _pack(linear.weight)
        self.out_features = len(linear.weight)
        rows = linear.weight.detach()
        threads = torch.get_num_threads()
        # One slice a thread; a single thread too is faster through this product than F.linear's.
        parts = max(threads, 2)
        while self.out_features % parts:
            parts -= 1
        self.slices = rows.view(parts, self.out_features // parts, -1)
        self.sliced = rows.dtype == torch.float32 and parts > 1

    def forward(self, x: Tensor) -> Tensor:
        columns = x.shape[-1]
        x = x.to(self.weight.dtype)
        if self.sliced and x.numel() == columns:
            # The strides decide which kernel runs: a transposed row takes torch's own.
            column = x.view(1, columns).t()[None].expand(len(self.slices), -1, -1)
            product = torch.bmm(self.slices, column)
            output = product.view(*x.shape[:-1], self.out_features)
            return output if self.bias is None else output + self.bias
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return cast(
            Tensor,
            torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], ""),
        )


class Int8Linear(nn.Module):
    """A linear layer of int8 weights with a float32 scale each row.

    Source:
        Dynamic quantization by absolute maximum: Dettmers et al. 2022, arXiv:2208.07339.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scales = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
        quantized = (weight / self.scales[:, None]).round().to(torch.int8)
        self.columns = quantized.t()
        """int8 [in, out], each output's weights side by side in memory."""
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        largest = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True)
        step = largest.float().mul_(1 / 127).clamp_min_(1e-30)
        quantized = torch.div(rows, step).round_().to(torch.int8)
        # int32 times float32 is float32: one pass converts and scales.
        output = torch._int_mm(quantized, self.columns).mul(self.scales).mul_(step)
        if self.bias is not None:
            output += self.bias
        return output.view(*x.shape[:-1], -1)


@functools.lru_cache(maxsize=1)
def _can_pack() -> bool:
    """Whether this build of torch has oneDNN's packed product, which inductor uses too."""
    try:
        weight = torch.ones(16, 16)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        torch.ops.mkldnn._linear_pointwise(torch.ones(2, 16), packed, None, "none", [], "")
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


def _pack(weight: Tensor) -> Tensor | None:
    if not _can_pack():
        return None
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None))


def _joined(linears: Iterable[nn.Linear]) -> nn.Linear:
    """Layers that read the same as one layer."""
    linears = list(linears)
    joined = nn.Linear(1, 1, bias=False, device="meta")
    weight = torch.cat([linear.weight.detach() for linear in linears])
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if linears[0].bias is not None:
        bias = torch.cat([linear.bias.detach() for linear in linears])
        joined.bias = nn.Parameter(bias, requires_grad=False)
    return joined


def _replace(module: nn.Module, weights: Weights) -> None:
    """Put fast layers in the place of plain ones, and let go of those that were joined."""
    if isinstance(module, Attention):
        del module.q_proj, module.k_proj, module.v_proj
    elif isinstance(module, FeedForward) and module.gate_up_proj is not None:
        del module.up_proj
        module.gate_proj = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear) and name != "lm_head":
            setattr(module, name, fast_linear(child, weights))
        elif isinstance(child, RMSNorm):
            setattr(module, name, FastRMSNorm(child))
        else:
            _replace(child, weights)
