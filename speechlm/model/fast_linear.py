"""Linear layers by the fastest kernels of a CPU, for inference.

Decoding reads every weight for every position, so it is as fast as memory is read. The plain
product of one position reaches a third of that, so here it is cut into one slice a thread;
products of a few positions use weights that are packed once. int8 weights quarter what is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Weights = Literal["float32", "bfloat16", "int8"]
ROWS_ONE_BY_ONE = 5
"""Up to so many rows, one at a time through a fused int8 kernel is faster than all at once."""
WIDEN = 2.0**32
"""What int8 layers read is scaled up by: the fused kernel rounds small ranges to coarse steps."""


def fast_linear(linear: nn.Linear, weights: Weights) -> nn.Module:
    """The quickest way to compute one linear layer."""
    if linear.weight.device.type != "cpu":
        return linear
    if weights == "int8":
        return Int8Linear(linear)
    return PackedLinear(linear)


def pack_linears(module: nn.Module) -> None:
    """Put packed layers in the place of linear ones inside ``module``, whose weights then stay."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, fast_linear(child, "float32"))


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
        # Where they do not come out even, the last slice begins among the rows of the others.
        parts = max(threads, 2)
        self.step = self.out_features // parts
        longest = self.out_features - (parts - 1) * self.step
        columns = rows.shape[1]
        self.slices = rows.as_strided((parts, longest, columns), (self.step * columns, columns, 1))
        self.sliced = rows.dtype == torch.float32 and rows.is_contiguous() and self.step > 0

    def forward(self, x: Tensor) -> Tensor:
        columns = x.shape[-1]
        x = x.to(self.weight.dtype)
        if self.sliced and x.numel() == columns:
            # The strides decide which kernel runs: a transposed row takes torch's own.
            column = x.view(1, columns).t()[None].expand(len(self.slices), -1, -1)
            product = torch.bmm(self.slices, column)[:, :, 0]
            if product.shape[1] != self.step:
                product = torch.cat([product[:-1, : self.step].flatten(), product[-1]])
            output = product.view(*x.shape[:-1], self.out_features)
            return output if self.bias is None else output + self.bias
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return cast(
            Tensor,
            torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], ""),
        )


class Int8Linear(nn.Module):
    """A linear layer of int8 weights, a float32 scale each output, that quantizes what it reads.

    Each row read has a scale and a zero point of its own, so its result does not depend on the
    others. Few rows go one by one through torch's fused kernel, many through one product of
    integers: sums of integers are exact, so both give the same bits.

    Source:
        Dynamic quantization of what is read, weights by absolute maximum: Dettmers et al. 2022,
        arXiv:2208.07339.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        largest = weight.abs().amax(dim=1).clamp_min(1e-12)
        quantized = (weight / (largest / 127)[:, None]).round().to(torch.int8)
        self.columns = quantized.t()
        """int8 [in, out], each output's weights side by side in memory."""
        self.scales = largest / 127 / WIDEN
        self.sums = quantized.sum(dim=1, dtype=torch.int32)
        self.bias = linear.bias
        self.fused, self.coarse = _fused_kernel()
        self.packed = None if self.fused is None else _pack_int8(quantized, self.scales)

    def forward(self, x: Tensor) -> Tensor:
        return self.widened(x.float() * WIDEN)

    def widened(self, wide: Tensor) -> Tensor:
        """What :meth:`forward` gives for ``wide / WIDEN``, float32."""
        num_rows = wide.numel() // wide.shape[-1]
        if self.fused is None or num_rows > ROWS_ONE_BY_ONE:
            output = self._all_at_once(wide)
        elif num_rows == 1:
            output = self.fused(wide, self.packed, self.coarse)
        else:
            rows = wide.flatten(0, -2).split(1)  # type: ignore[no-untyped-call]
            output = torch.cat([self.fused(row, self.packed, self.coarse) for row in rows])
            output = output.view(*wide.shape[:-1], -1)
        # Not the kernel's own bias, which it rounds in one way here and in another there.
        return output if self.bias is None else output.add_(self.bias)

    def _all_at_once(self, wide: Tensor) -> Tensor:
        rows = wide.flatten(0, -2)
        levels = 127 if self.coarse else 255
        output = _quantize_and_multiply(rows, self.columns, self.sums, self.scales, levels)
        return output.view(*wide.shape[:-1], -1)


def _quantize_and_multiply(
    rows: Tensor, columns: Tensor, sums: Tensor, scales: Tensor, levels: int
) -> Tensor:
    """What the fused kernel computes, of any number of rows [N, in], each by itself."""
    # Zero is always within the range, and is quantized without error.
    low = rows.amin(dim=1, keepdim=True).clamp_max_(0).double()
    high = rows.amax(dim=1, keepdim=True).clamp_min_(0).double()
    step = (high - low) / levels
    step = step.masked_fill_(step == 0, 0.1)
    below, above = low / step, high / step
    zero = torch.where(below < levels - above, -below, levels - above).clamp_(0, levels).round_()
    step = step.float()
    # In double, since the kernel rounds once: product and sum are one instruction there.
    quantized = torch.addcmul(zero, rows.double(), (1 / step).double()).float()
    quantized = quantized.round_().clamp_(0, 255)
    products = torch._int_mm((quantized - 128).to(torch.int8), columns)
    products -= (zero - 128).to(torch.int32) * sums
    return products.float().mul_(scales * step)


def _pack_int8(weight: Tensor, scales: Tensor) -> Any:
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    quantized = torch._make_per_channel_quantized_tensor(weight, scales.double(), zeros, 0)
    return torch.ops.quantized.linear_prepack(quantized, None)


@functools.lru_cache(maxsize=1)
def _fused_kernel() -> tuple[Callable[[Tensor, Any, bool], Tensor] | None, bool]:
    """The kernel that quantizes, multiplies and scales at once, if it is exact on this machine.

    And whether what is read has 7 bits: where there are no VNNI instructions, products of 8 and
    8 bits are added in 16, which overflow.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (64, 256), generator=generator).to(torch.int8)
    weight[:32] = 127  # the largest sums
    rows = torch.randn(256, 256, generator=generator) * WIDEN
    rows[::2] += 4 * WIDEN
    scales = torch.rand(64, generator=generator)
    sums = weight.sum(dim=1, dtype=torch.int32)
    try:
        # The raw function: what wraps it looks through every argument on every call.
        kernel = cast(
            Callable[[Tensor, Any, bool], Tensor], torch.ops.quantized.linear_dynamic.default._op
        )
        packed = _pack_int8(weight, scales)
        for coarse in (False, True):
            levels = 127 if coarse else 255
            expected = _quantize_and_multiply(rows, weight.t(), sums, scales, levels)
            found = torch.cat([kernel(row[None], packed, coarse) for row in rows])
            if torch.equal(found, expected):
                return kernel, coarse
    except (RuntimeError, AttributeError, NotImplementedError):
        pass
    return None, False


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
