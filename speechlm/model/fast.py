"""A decoder made ready to decode: fewer and larger operations, by the fastest kernels here.

A small model decodes as fast as Python and torch get through its operations, a large one as
fast as memory is read; :mod:`speechlm.model.fast_linear` sees to the latter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from speechlm.errors import ConfigError
from speechlm.model.decoder import Context, Decoder, DecoderLayer, activate, turn
from speechlm.model.fast_linear import WIDEN, Int8Linear, Weights, fast_linear
from speechlm.model.norm import RMSNorm

Call = Callable[[Tensor], Tensor]


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
    if weights not in get_args(Weights):
        raise ConfigError(f"expected weights float32, bfloat16 or int8, got {weights!r}")
    if weights == "int8" and decoder.device.type != "cpu":
        raise ConfigError(f"int8 weights are for the CPU, the LM is on {decoder.device}")
    if weights == "bfloat16":
        ready = copy.deepcopy(decoder).bfloat16().requires_grad_(False)
    else:
        shared = {
            id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
            for parameter in decoder.parameters()
        }
        ready = copy.deepcopy(decoder, memo=cast(dict[int, Any], shared))
    _replace(ready.eval(), weights)
    return ready


class FastLayer(DecoderLayer):
    """A layer without parts to call: a module's call costs as much as a small operation."""

    def __init__(self, layer: DecoderLayer, weights: Weights) -> None:
        nn.Module.__init__(self)
        attention, mlp = layer.self_attn, layer.mlp
        self.number = layer.number
        self.parallel = layer.parallel
        self.head_dim = attention.head_dim
        self.num_heads, self.num_kv_heads = attention.num_heads, attention.num_kv_heads
        self.activation = mlp.activation
        self.gated = mlp.gate_proj is not None
        self.q_norm = attention.q_norm and _fast_norm(attention.q_norm).forward
        self.k_norm = attention.k_norm and _fast_norm(attention.k_norm).forward
        qkv = _joined((attention.q_proj, attention.k_proj, attention.v_proj))
        up = mlp.up_proj if mlp.gate_proj is None else _joined((mlp.gate_proj, mlp.up_proj))
        self.read_norm, self.qkv = _normed(layer.input_layernorm, qkv, weights)
        self.mlp_norm, self.up = _normed(layer.post_attention_layernorm, up, weights)
        self.o = fast_linear(attention.o_proj, weights).forward
        self.down = fast_linear(mlp.down_proj, weights).forward

    def project(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        both = self.num_heads + self.num_kv_heads
        heads = self.qkv(self.read_norm(x)).view(*x.shape[:2], -1, self.head_dim)
        qk, v = heads.split_with_sizes((both, self.num_kv_heads), 2)
        if self.q_norm is None or self.k_norm is None:
            q, k = turn(qk, context).split_with_sizes((self.num_heads, self.num_kv_heads), 2)
            return q, k, v
        q, k = qk.split_with_sizes((self.num_heads, self.num_kv_heads), 2)
        return turn(self.q_norm(q), context), turn(self.k_norm(k), context), v

    def finish(self, x: Tensor, heads: Tensor, select: Tensor | None = None) -> Tensor:
        attended: Tensor = x + self.o(heads)
        if select is not None:
            x, attended = x.flatten(0, 1)[select], attended.flatten(0, 1)[select]
        up = self.up(self.mlp_norm(x if self.parallel else attended))
        if self.gated:
            gate, up = up.chunk(2, dim=-1)
            return attended.add_(self.down(activate(gate, self.activation).mul_(up)))
        return attended.add_(self.down(activate(up, self.activation)))


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


def _normed(norm: nn.Module, linear: nn.Linear, weights: Weights) -> tuple[Call, Call]:
    """A norm and what alone reads it."""
    fast, reader = _fast_norm(norm), fast_linear(linear, weights)
    if isinstance(fast, FastRMSNorm) and isinstance(reader, Int8Linear):
        fast.weight *= WIDEN
        return fast.forward, reader.widened
    return fast.forward, reader.forward


def _fast_norm(norm: nn.Module) -> nn.Module:
    return FastRMSNorm(norm) if isinstance(norm, RMSNorm) else norm


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
    """Put fast layers in the place of plain ones."""
    for name, child in list(module.named_children()):
        if isinstance(child, DecoderLayer):
            setattr(module, name, FastLayer(child, weights))
        elif isinstance(child, nn.Linear) and name != "lm_head":
            setattr(module, name, fast_linear(child, weights))
        elif isinstance(child, RMSNorm):
            setattr(module, name, FastRMSNorm(child))
        else:
            _replace(child, weights)
