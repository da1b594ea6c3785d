"""Vectors to codes and back: residual vector quantization and residual finite scalar quantization.

Both turn a vector into one code a level, each level quantizing what those before it left over, so
that the first levels alone already stand for the vector roughly. Gradients pass straight through.

* :class:`ResidualVQ` compares with codebooks. They follow the vectors by moving averages that
  :class:`CodebookLearner` keeps, which also starts them by k-means and revives dead codes.
* :class:`ResidualFSQ` rounds a few projected numbers, so it has no codebook to learn: nothing
  dies, and plain gradients train it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

from speechlm.errors import ConfigError
from speechlm_tokenizers.kmeans import assign, fit_kmeans


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Quantized:
    """What became of vectors in training."""

    vectors: Tensor
    """What the codes in use stand for, float32 [B, F, D]; gradients pass straight through."""
    first: Tensor
    """What the first level alone stands for, float32 [B, F, D], likewise."""
    codes: Tensor
    """Of all levels, int64 [B, K, F]."""
    given: Tensor
    """What each level was given to quantize, float32 [K, B, F, D], without gradient."""
    loss: Tensor
    """How far vectors and what stands for them are apart, float32 [], mean over the levels."""


def used_levels(num_levels: int, rows: int, dropout: float, generator: torch.Generator) -> Tensor:
    """Draw how many levels each row of a batch may use (quantizer dropout).

    A codec that has been trained so still works with its last levels left out.

    Args:
        num_levels: All there are.
        rows: B.
        dropout: Share of rows that get fewer, any number from 1 on.
        generator: Decides them.

    Returns:
        int64 [B] within 1..num_levels.

    Source:
        Zeghidour et al. 2021 (SoundStream), arXiv:2107.03312.
    """
    fewer = torch.rand(rows, generator=generator) < dropout
    drawn = torch.randint(1, num_levels + 1, (rows,), generator=generator)
    return torch.where(fewer, drawn, num_levels)


def add_up(terms: Sequence[Tensor]) -> Tensor:
    """Sum in order."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class ResidualVQ(nn.Module):
    """Nearest vectors of a codebook, then of the next one's for what is left, and so on.

    Args:
        num_levels: Codebooks, K.
        vocab_size: Vectors in each, V.
        dim: Numbers in a vector, D.

    Source:
        Zeghidour et al. 2021 (SoundStream), arXiv:2107.03312.
    """

    codebooks: Tensor
    """float32 [K, V, D]."""

    def __init__(self, num_levels: int, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.num_levels, self.vocab_size = num_levels, vocab_size
        self.register_buffer("codebooks", torch.randn(num_levels, vocab_size, dim) / dim**0.5)

    def encode(self, vectors: Tensor) -> Tensor:
        """Code float32 [N, D] as int64 [K, N]."""
        codes = []
        for codebook in self.codebooks:
            codes.append(assign(vectors, codebook))
            vectors = vectors - codebook[codes[-1]]
        return torch.stack(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """What codes int64 [K', N], K' <= K, stand for, float32 [N, D]."""
        return add_up([book[code] for book, code in zip(self.codebooks, codes, strict=False)])

    def forward(self, vectors: Tensor, used: Tensor) -> Quantized:
        """Quantize float32 [B, F, D], of which row b uses its first ``used[b]`` levels."""
        codes, given, losses = [], [], []
        total = first = torch.zeros_like(vectors)
        residual = vectors
        for level, codebook in enumerate(self.codebooks):
            given.append(residual.detach())
            code = assign(given[-1].flatten(0, 1), codebook).reshape(residual.shape[:2])
            chosen = codebook[code]
            mask = (used > level).to(vectors)[:, None, None]
            # Codebooks move by themselves; this pulls the vectors to them.
            losses.append((mask * (residual - chosen).square()).mean())
            total = total + mask * chosen
            if level == 0:
                first = chosen
            residual = residual - chosen
            codes.append(code)
        return Quantized(
            vectors=_straight_through(vectors, total),
            first=_straight_through(vectors, first),
            codes=torch.stack(codes, dim=1),
            given=torch.stack(given),
            loss=torch.stack(losses).mean(),
        )


class ResidualFSQ(nn.Module):
    """Each level projects to a few numbers, rounds each to a few values, and projects back.

    Args:
        num_levels: Codes a vector, K.
        values: How many values each projected number may take; the vocabulary is their product.
        dim: Numbers in a vector, D.

    Source:
        Mentzer et al. 2023 (FSQ), arXiv:2309.15505; the projections a level are those of
        Kumar et al. 2023 (DAC), arXiv:2306.06546.
    """

    def __init__(self, num_levels: int, values: Sequence[int], dim: int) -> None:
        super().__init__()
        self.num_levels, self.vocab_size = num_levels, math.prod(values)
        self.down = nn.ModuleList(nn.Linear(dim, len(values)) for _ in range(num_levels))
        self.up = nn.ModuleList(nn.Linear(len(values), dim, bias=False) for _ in range(num_levels))
        self.values = tuple(values)
        for down, up in zip(self.down, self.up, strict=True):
            _begin_rounding(cast(nn.Linear, down), cast(nn.Linear, up))

    def digits_to_codes(self, digits: Tensor) -> Tensor:
        """Number digits int64 [..., L], the first counting least, as int64 [...]."""
        return (digits * self._weights(digits)).sum(dim=-1)

    def codes_to_digits(self, codes: Tensor) -> Tensor:
        """The digits int64 [..., L] of codes int64 [...]."""
        return codes[..., None] // self._weights(codes) % codes.new_tensor(self.values)

    def encode(self, vectors: Tensor) -> Tensor:
        """Code float32 [N, D] as int64 [K, N]."""
        codes = []
        for down, up in zip(self.down, self.up, strict=True):
            digits = self._scale(down(vectors)).round()
            codes.append(self.digits_to_codes(digits.long()))
            vectors = vectors - up(self._centre(digits))
        return torch.stack(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """What codes int64 [K', N], K' <= K, stand for, float32 [N, D]."""
        return add_up(
            [
                up(self._centre(self.codes_to_digits(code)))
                for up, code in zip(self.up, codes, strict=False)
            ]
        )

    def forward(self, vectors: Tensor, used: Tensor) -> Quantized:
        """Quantize float32 [B, F, D], of which row b uses its first ``used[b]`` levels."""
        codes, given, losses = [], [], []
        total = first = torch.zeros_like(vectors)
        residual = vectors
        for level, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            given.append(residual.detach())
            scaled = self._scale(down(residual))
            digits = _straight_through(scaled, scaled.detach().round())
            chosen = up(self._centre(digits))
            mask = (used > level).to(vectors)[:, None, None]
            losses.append((mask * (given[-1] - chosen).square()).mean())
            total = total + mask * chosen
            if level == 0:
                first = chosen
            residual = residual - chosen.detach()
            codes.append(self.digits_to_codes(digits.detach().round().long()))
        return Quantized(
            vectors=total,
            first=first,
            codes=torch.stack(codes, dim=1),
            given=torch.stack(given),
            loss=torch.stack(losses).mean(),
        )

    def _scale(self, projected: Tensor) -> Tensor:
        """Bring numbers into 0..most, smoothly, so that rounding gives a digit."""
        return (2 * projected.float()).sigmoid() * (projected.new_tensor(self.values) - 1).float()

    def _centre(self, digits: Tensor) -> Tensor:
        """Digits as numbers in -1..1, float32."""
        return digits * 2 / (digits.new_tensor(self.values).float() - 1) - 1

    def _weights(self, codes: Tensor) -> Tensor:
        """What each digit counts in a code, int64 [L]."""
        return codes.new_tensor(
            [math.prod(self.values[:place]) for place in range(len(self.values))]
        )


class CodebookLearner(nn.Module):
    """What moves the codebooks of a :class:`ResidualVQ` in training; all of it is in buffers.

    A codebook's vector is the moving average of the vectors it stood for. The first codebooks
    are found by k-means over the vectors of the first ``warmup`` steps, which pass unquantized. A
    code that stands for less than ``least_share`` of its even share moves to a random vector.

    In distributed training every process counts what all of them saw, so their codebooks stay
    equal: k-means and revived codes take their vectors from the first process.

    Args:
        quantizer: Whose codebooks it moves; only its shapes are read here.
        decay: How much of the average stays at each step.
        warmup: Steps before k-means.
        reserve: Vectors kept for k-means, R; the latest ones.
        least_share: Below, a code is dead.

    Source:
        van den Oord et al. 2017 (VQ-VAE, appendix A.1), arXiv:1711.00937; dead codes as in
        Dhariwal et al. 2020 (Jukebox), arXiv:2005.00341.
    """

    counts: Tensor
    """Vectors a step that each code stands for, float32 [K, V]."""
    sums: Tensor
    """Their sum, float32 [K, V, D]."""
    recent: Tensor
    """Latest vectors, float32 [R, D]."""
    seen: Tensor
    """Vectors taken into ``recent``, int64 []."""
    step: Tensor
    """Steps so far, int64 []."""

    def __init__(
        self,
        quantizer: ResidualVQ,
        *,
        decay: float = 0.95,
        warmup: int = 50,
        reserve: int = 8192,
        least_share: float = 0.05,
    ) -> None:
        super().__init__()
        self.decay, self.warmup, self.least_share = decay, warmup, least_share
        books = quantizer.codebooks
        self.register_buffer("counts", torch.ones(books.shape[:2]))
        self.register_buffer("sums", books.clone())
        self.register_buffer("recent", torch.zeros(max(reserve, books.shape[1]), books.shape[2]))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def started(self) -> bool:
        """Whether the codebooks are of use yet."""
        return int(self.step) > self.warmup

    def require_start(self, option: str) -> None:
        """Raise ConfigError where training ended before there were codebooks.

        Args:
            option: Of ``tokenizer.options``, what says how many steps come before them.
        """
        if not self.started():
            raise ConfigError(
                f"the codebook starts after {self.warmup} steps, but training ended at "
                f"{int(self.step)}: raise train.max_steps, or lower tokenizer.options.{option}"
            )

    @torch.no_grad()
    def prepare(self, quantizer: ResidualVQ, vectors: Tensor, generator: torch.Generator) -> bool:
        """Take the vectors of a step, float32 [B, F, D], before they are quantized.

        Returns:
            Whether they shall be quantized: not while k-means waits for more of them.
        """
        if self.started():
            return True
        self._remember(vectors.flatten(0, 1))
        self.step += 1
        if self.started():
            self._start(quantizer, generator)
        return self.started()

    @torch.no_grad()
    def update(
        self, quantizer: ResidualVQ, quantized: Quantized, generator: torch.Generator
    ) -> Tensor:
        """Move the codebooks towards what they stood for; give how many codes were dead, []."""
        size, (num_levels, vocab_size) = quantized.given[0, ..., 0].numel(), self.counts.shape
        codes = rearrange(quantized.codes, "b k f -> k (b f)")
        given = rearrange(quantized.given, "k b f d -> k (b f) d").float()
        counts = torch.zeros_like(self.counts).scatter_add_(
            1, codes, torch.ones_like(codes, dtype=torch.float32)
        )
        sums = torch.zeros_like(self.sums).scatter_add_(1, codes[..., None].expand_as(given), given)
        _add_over_processes(counts, sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        even = self.counts.sum(dim=1, keepdim=True) / vocab_size
        dead = self.counts < self.least_share * even
        quantizer.codebooks.copy_(self.sums / self.counts.clamp(min=1e-8)[..., None])
        if dead.any():
            picks = torch.randint(size, (num_levels, vocab_size), generator=generator)
            fresh = given.gather(1, picks.to(given.device)[..., None].expand_as(self.sums))
            _take_from_first_process(fresh)
            # It counts as an even share, else it would be dead again before it is met.
            self.counts.copy_(torch.where(dead, even.expand_as(dead), self.counts))
            quantizer.codebooks.copy_(torch.where(dead[..., None], fresh, quantizer.codebooks))
            self.sums.copy_(torch.where(dead[..., None], fresh * self.counts[..., None], self.sums))
        return dead.sum()

    def _remember(self, vectors: Tensor) -> None:
        places = (self.seen + torch.arange(len(vectors), device=vectors.device)) % len(self.recent)
        latest = slice(-len(self.recent), None)
        self.recent[places[latest]] = vectors[latest].float()
        self.seen += len(vectors)

    def _start(self, quantizer: ResidualVQ, generator: torch.Generator) -> None:
        vectors = self.recent[: int(self.seen)].cpu()
        # Too few for k-means: stand-ins nearby, which the averages and revivals sort out.
        while len(vectors) < quantizer.vocab_size:
            jitter = torch.randn(vectors.shape, generator=generator) * vectors.std() * 0.01
            vectors = torch.cat([vectors, vectors + jitter])
        books = []
        for _ in range(quantizer.num_levels):
            books.append(fit_kmeans(vectors, quantizer.vocab_size, 10, generator))
            vectors = vectors - books[-1][assign(vectors, books[-1])]
        found = torch.stack(books).to(self.sums)
        _take_from_first_process(found)
        quantizer.codebooks.copy_(found)
        self.sums.copy_(found * self.counts[..., None])


@torch.no_grad()
def _begin_rounding(down: nn.Linear, up: nn.Linear) -> None:
    """Let two layers begin as a projection and its inverse, with rounding to full range between.

    Vectors as a linear layer gives them, of variance 1/3, become numbers of variance 1; such reach
    the ends of what rounding tells apart, so that all codes are met from the first step on.
    """
    nn.init.orthogonal_(down.weight, gain=3**0.5)
    nn.init.zeros_(down.bias)
    # What squashing takes from numbers of variance 1 on the whole is given back.
    up.weight.copy_(down.weight.T / 3 * 1.4)


def perplexity(codes: Tensor, vocab_size: int) -> Tensor:
    """How many equally frequent codes would be as uncertain, float32 [K] of int64 [B, K, F]."""
    rows = rearrange(codes, "b k f -> k (b f)")
    counts = torch.zeros(len(rows), vocab_size, device=codes.device)
    counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float32))
    shares = counts / rows.shape[1]
    found: Tensor = torch.special.entr(shares).sum(dim=1).exp()
    return found


def _straight_through(vectors: Tensor, chosen: Tensor) -> Tensor:
    """``chosen`` in value, ``vectors`` in gradient."""
    return vectors + (chosen - vectors).detach()


def _add_over_processes(*tensors: Tensor) -> None:
    if dist.is_available() and dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)


def _take_from_first_process(tensor: Tensor) -> None:
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(tensor, src=0)
