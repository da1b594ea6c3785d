"""Mimi's encoder and decoder, in blocks of one size and with an explicit state.

Both halves look only at the past: causal convolutions (SEANet) and a transformer with a sliding
window, between them a split residual quantizer. A stream hands over blocks of ``block`` frames,
and a whole recording is such a stream too, so the two agree to the bit.

Positions are rows here, features columns. Then a convolution is one matrix product of overlapping
rows, and upsampling is one of each row beside the row before it, which needs no overlap-add:
products as large as can be, by the kernels that are quickest for so many rows. What a layer will
read of the past stands before the block in one buffer, so nothing is joined.

Weights are those that :mod:`speechlm_tokenizers.mimi_checkpoint` makes of a checkpoint.

Source:
    Défossez et al. 2024 (Moshi), arXiv:2410.00037; SEANet: Tagliasacchi et al. 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.errors import ConfigError
from speechlm.model.fast_linear import fast_linear
from speechlm.settings import at_least

RESAMPLING = 2
"""Positions of the transformers a frame of units."""
ALIGNMENT = 64
"""Bytes. Kernels may add up in another order where memory begins elsewhere."""
PAIR_COLUMNS = 2048
"""Widest matrix that two rows are quicker multiplied with as it is than packed."""

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class MimiArchitecture:
    """What the shapes of weights do not tell. Defaults: the published Mimi."""

    sample_rate: int = 24_000
    """Hz."""
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    """Upsampling of the decoder's stages; the encoder has them in reverse."""
    residual_layers: int = 1
    """Residual blocks a stage."""
    dilation_base: int = 2
    """A stage's residual block ``i`` has the dilation ``dilation_base ** i``."""
    num_heads: int = 8
    window: int = 250
    """Positions that attention sees, the present one included."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    num_semantic: int = 1
    """The first codebooks, which have a projection of their own."""

    def __post_init__(self) -> None:
        if not self.ratios or min(self.ratios) < 1:
            raise ConfigError(f"ratios must be positive, got {list(self.ratios)}")
        for name in ("residual_layers", "num_heads", "window", "num_semantic"):
            at_least(1, name, getattr(self, name))

    @property
    def hop_length(self) -> int:
        """Samples a frame of units."""
        return RESAMPLING * math.prod(self.ratios)


@dataclass(slots=True)
class State:
    """What one half of the model remembers of one stream; new ones are empty."""

    rows: dict[object, Tensor] = field(default_factory=dict)
    """By layer, the rows it will read again, and room for a block's behind them: [rows, C]."""
    keys: Tensor | None = None
    """Of each transformer layer, float32 [layers, heads, room, features]."""
    values: Tensor | None = None
    end: int = 0
    """Positions that ``keys`` and ``values`` hold, from their beginning."""
    position: int = 0
    """Positions heard so far."""


class Encoder:
    """Sound to units."""

    def __init__(
        self, weights: Mapping[str, Tensor], architecture: MimiArchitecture, block: int
    ) -> None:
        part = Weights(weights, "encoder.")
        length = block * architecture.hop_length
        self.first = CausalConv(part.within("first."), channels=1, length=length)
        self.stages = []
        for stage, ratio in enumerate(reversed(architecture.ratios)):
            of_stage = part.within(f"stages.{stage}.")
            residuals = _residuals(of_stage, architecture, length)
            channels = of_stage["residuals.0.narrow.weight"].shape[0]
            down = CausalConv(
                of_stage.within("down."), channels=channels, length=length, stride=ratio
            )
            self.stages.append((residuals, down))
            length //= ratio
        channels = len(self.stages[-1][1].weight)
        self.last = CausalConv(part.within("last."), channels=channels, length=length)
        self.transformer = Transformer(part.within("transformer."), architecture, length)
        self.resample = CausalConv(
            part.within("resample."),
            channels=len(self.last.weight),
            length=length,
            stride=RESAMPLING,
        )
        self.quantizer = Quantizer(Weights(weights, "quantizer."), architecture, block)

    @torch.no_grad()
    def encode(self, samples: Tensor, state: State) -> Tensor:
        """Tokenize a block.

        Args:
            samples: float32 [block * hop_length].
            state: The stream's.

        Returns:
            Units, int64 [K, block].
        """
        x = self.first(samples[:, None], state)
        for residuals, down in self.stages:
            for residual in residuals:
                x = residual(x, state)
            x = down(x, state, activate=True)
        x = self.transformer(self.last(x, state, activate=True), state)
        return self.quantizer.encode(self.resample(x, state, repeat_first=True))


class Decoder:
    """Units to sound."""

    def __init__(
        self, weights: Mapping[str, Tensor], architecture: MimiArchitecture, block: int
    ) -> None:
        part = Weights(weights, "decoder.")
        self.codebooks = weights["quantizer.codebooks"]
        num_codebooks, vocab_size, _ = self.codebooks.shape
        self.num_semantic = min(architecture.num_semantic, num_codebooks)
        self.offsets = vocab_size * torch.arange(num_codebooks)
        self.project = product(part["project.weight"], None, block)
        self.resample = part["resample.weight"]
        length = block * RESAMPLING
        self.transformer = Transformer(part.within("transformer."), architecture, length)
        dim = len(part["project.weight"])
        self.first = CausalConv(part.within("first."), channels=dim, length=length)
        channels = len(self.first.weight)
        self.stages = []
        for stage, ratio in enumerate(architecture.ratios):
            of_stage = part.within(f"stages.{stage}.")
            up = CausalConv(of_stage.within("up."), channels=channels, length=length)
            length *= ratio
            self.stages.append((up, _residuals(of_stage, architecture, length)))
            channels = of_stage["residuals.0.narrow.weight"].shape[0]
        self.last = CausalConv(part.within("last."), channels=channels, length=length)

    @torch.no_grad()
    def decode(self, codes: Tensor, state: State) -> Tensor:
        """Render a block.

        Args:
            codes: Units, int64 [K, block].
            state: The stream's.

        Returns:
            float32 [block * hop_length].
        """
        x = self.transformer(self._upsample(self._embed(codes), state), state)
        x = self.first(x, state)
        for up, residuals in self.stages:
            x = up(x, state, activate=True).view(-1, residuals[0].channels)
            for residual in residuals:
                x = residual(x, state)
        return self.last(x, state, activate=True).flatten()

    def _embed(self, codes: Tensor) -> Tensor:
        num_codebooks, _, width = self.codebooks.shape
        rows = (codes.t() + self.offsets).flatten()
        rows = self.codebooks.view(-1, width).index_select(0, rows)
        rows = rows.view(-1, num_codebooks, width)
        kinds = (rows[:, : self.num_semantic], rows[:, self.num_semantic :])
        return self.project(torch.cat([kind.sum(dim=1) for kind in kinds], dim=1))

    def _upsample(self, x: Tensor, state: State) -> Tensor:
        """Each feature for itself: [F, D] to [F * RESAMPLING, D]."""
        buffer = state.rows.get(self)
        if buffer is None:
            buffer = state.rows[self] = x.new_zeros(len(x) + 1, x.shape[1])
        buffer[1:] = x
        past, present = self.resample
        result = torch.addcmul(buffer[:-1, None] * past, buffer[1:, None], present)
        buffer[0] = x[-1]
        return result.view(-1, x.shape[1])


class CausalConv:
    """A convolution as one product, of rows that overlap in memory.

    Args:
        weights: ``weight`` float32 [C', kernel * C], oldest row first, and perhaps ``bias`` [C'].
        channels: C.
        length: Rows it is given a block.
        stride: Rows from one product to the next; divides ``length``.
        dilation: Rows from one that a product reads to the next.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        channels: int,
        length: int,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        self.weight = weights["weight"]
        kernel = self.weight.shape[1] // channels
        self.reach = (kernel - 1) * dilation + 1 - stride
        self.count = length // stride
        self.size = (self.count, kernel, channels)
        self.strides = (stride * channels, dilation * channels, 1)
        self.product = product(self.weight, weights.get("bias"), self.count)

    def __call__(
        self, x: Tensor, state: State, activate: bool = False, repeat_first: bool = False
    ) -> Tensor:
        """Convolve a block, float32 [length, C] to [length / stride, C'].

        Args:
            x: The block.
            state: The stream's.
            activate: Convolve ELU of it.
            repeat_first: Before the stream's beginning stands its first row, instead of zeros.
        """
        buffer = state.rows.get(self)
        if buffer is None:
            buffer = state.rows[self] = x.new_zeros(self.reach + len(x), x.shape[1])
            if repeat_first:
                buffer[: self.reach] = x[0]
        if activate:
            torch.ops.aten.elu.out(x, out=buffer[self.reach :])
        else:
            buffer[self.reach :] = x
        result = self.product(buffer.as_strided(self.size, self.strides).reshape(self.count, -1))
        if self.reach:
            kept = buffer[len(x) :]
            # They overlap where a block is shorter than what is kept.
            buffer[: self.reach] = kept.clone() if self.reach > len(x) else kept
        return result


class Residual:
    """A narrow convolution beside the identity."""

    def __init__(self, weights: Weights, length: int, dilation: int) -> None:
        self.channels = len(weights["narrow.weight"])
        self.wide = CausalConv(
            weights.within("wide."), channels=self.channels, length=length, dilation=dilation
        )
        self.narrow = product(weights["narrow.weight"], weights.get("narrow.bias"), length)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        return self.narrow(F.elu_(self.wide(x, state, activate=True))).add_(x)


class Transformer:
    """Layers of attention over the last ``window`` positions.

    Keys and values stand side by side in a room of a few windows; when it is full, the last
    window moves to its beginning. So attention always reads one slice, and its mask is the end
    of one band.
    """

    def __init__(self, weights: Weights, architecture: MimiArchitecture, length: int) -> None:
        self.layers = [
            Layer(weights.within(f"{number}."), architecture, length)
            for number in range(weights.count("{}.qkv.weight"))
        ]
        self.window, self.num_heads = architecture.window, architecture.num_heads
        self.room = 2 * self.window + 4 * length
        self.features = self.layers[0].features
        exponents = torch.arange(0, self.features, 2, dtype=torch.float64) / self.features
        # Double: hours of positions are turned as precisely as the first ones.
        self.frequencies = architecture.rope_theta**-exponents
        self.steps = torch.arange(length, dtype=torch.float64)[:, None]
        columns = torch.arange(self.window - 1 + length) - (self.window - 1)
        ages = torch.arange(length)[:, None] - columns
        hidden = (ages < 0) | (ages >= self.window)
        self.mask = torch.zeros(hidden.shape).masked_fill(hidden, -math.inf)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        """Take a block of positions, float32 [length, D], and give as many."""
        keys, values, begin, end = self._make_room(len(x), state)
        angles = (self.steps + state.position) * self.frequencies
        turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None]
        mask = self.mask[:, begin - end :]
        for layer, of_keys, of_values in zip(self.layers, keys, values, strict=True):
            x = layer(x, turn, mask, of_keys, of_values, begin)
        state.end = end
        state.position += len(x)
        return x

    def _make_room(self, length: int, state: State) -> tuple[Tensor, Tensor, int, int]:
        """Keys and values up to the block's end, and where what it sees begins and ends."""
        if state.keys is None or state.values is None:
            size = (len(self.layers), self.num_heads, self.room, self.features)
            state.keys, state.values = torch.zeros(size), torch.zeros(size)
        past = self.window - 1
        if state.end + length > self.room:
            for held in (state.keys, state.values):
                held[:, :, :past] = held[:, :, state.end - past : state.end]
            state.end = past
        end = state.end + length
        return (
            state.keys[:, :, :end],
            state.values[:, :, :end],
            max(0, state.end - past),
            end,
        )


class Layer:
    """Attention and feed-forward of one transformer layer."""

    def __init__(self, weights: Weights, architecture: MimiArchitecture, length: int) -> None:
        self.dim = weights["qkv.weight"].shape[1]
        self.num_heads = architecture.num_heads
        self.features = len(weights["qkv.weight"]) // 3 // self.num_heads
        self.scale = self.features**-0.5
        self.eps = architecture.norm_eps
        self.norms = [
            (aligned(weights[f"{name}.weight"]), aligned(weights[f"{name}.bias"]))
            for name in ("norm1", "norm2")
        ]
        self.qkv, self.out, self.up, self.down = (
            product(weights[f"{name}.weight"], None, length)
            for name in ("qkv", "out", "up", "down")
        )

    def __call__(
        self, x: Tensor, turn: Tensor, mask: Tensor, keys: Tensor, values: Tensor, begin: int
    ) -> Tensor:
        """Take a block.

        Args:
            x: float32 [length, D].
            turn: Rotary positions, complex64 [length, 1, features / 2].
            mask: What is added to scores, float32 [length, seen].
            keys: float32 [heads, end, features]; the last ``length`` are written here.
            values: The same.
            begin: The first position that is seen; ``seen = end - begin``.
        """
        length, heads = len(x), self.num_heads
        read = F.layer_norm(x, (self.dim,), *self.norms[0], self.eps)
        projected = self.qkv(read).view(length, 3 * heads, self.features)
        pairs = projected[:, : 2 * heads].view(length, 2 * heads, -1, 2)
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(2).transpose(0, 1)
        keys[:, -length:] = turned[heads:]
        values[:, -length:] = projected[:, 2 * heads :].transpose(0, 1)
        seen = keys[:, begin:].transpose(1, 2)
        scores = torch.baddbmm(mask, turned[:heads], seen, alpha=self.scale)
        heard = torch.bmm(scores.softmax(dim=2), values[:, begin:])
        x = x + self.out(heard.transpose(0, 1).reshape(length, -1))
        read = F.layer_norm(x, (self.dim,), *self.norms[1], self.eps)
        return x.add_(self.down(F.gelu(self.up(read))))


class Quantizer:
    """The nearest row of each codebook, of what those before it have left over."""

    def __init__(self, weights: Weights, architecture: MimiArchitecture, block: int) -> None:
        self.project = product(weights["project.weight"], None, block)
        self.codebooks = list(weights["codebooks"])
        # The nearest is the one of the largest product, less half its own square.
        self.scores = [
            product(codebook, -0.5 * codebook.square().sum(dim=1), block)
            for codebook in self.codebooks
        ]
        self.num_semantic = architecture.num_semantic

    def encode(self, x: Tensor) -> Tensor:
        """Quantize float32 [F, D] to units int64 [K, F]."""
        codes = []
        rest, acoustic = self.project(x).chunk(2, dim=1)
        for level, (score, codebook) in enumerate(zip(self.scores, self.codebooks, strict=True)):
            if level == self.num_semantic:
                rest = acoustic
            code = score(rest).argmax(dim=1)
            codes.append(code)
            rest = rest - codebook.index_select(0, code)
        return torch.stack(codes)


class Weights:
    """Those of one part of the model, by their names within it."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        self._tensors, self._prefix = tensors, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def get(self, name: str) -> Tensor | None:
        return self._tensors.get(self._prefix + name)

    def within(self, prefix: str) -> Weights:
        return Weights(self._tensors, self._prefix + prefix)

    def count(self, pattern: str) -> int:
        """How many there are of a name with a number in it."""
        number = 0
        while self.get(pattern.format(number)) is not None:
            number += 1
        return number


def product(weight: Tensor, bias: Tensor | None, rows: int) -> Call:
    """A linear layer for so many rows, by the kernel that is quickest for them.

    Reading the weights is what takes the time where rows are few: the published Mimi has two a
    frame in its transformers, where packed weights are read at half the speed.
    """
    weight = aligned(weight)
    if rows == 2 and bias is None and weight.shape[1] <= PAIR_COLUMNS:
        return lambda x: torch.mm(weight, x.t()).t().contiguous()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(aligned(bias), requires_grad=False)
    return fast_linear(linear, "float32").forward


def aligned(tensor: Tensor) -> Tensor:
    """The same where torch itself would put it: a file's content may begin anywhere."""
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def _residuals(weights: Weights, architecture: MimiArchitecture, length: int) -> list[Residual]:
    return [
        Residual(weights.within(f"residuals.{number}."), length, architecture.dilation_base**number)
        for number in range(architecture.residual_layers)
    ]
