"""Training of supervised tokenizers: CTC through a codebook in the middle of an encoder.

Layers below the codebook learn to keep, in one of a few hundred vectors a frame, what the labels
need; layers above it learn to read labels from these vectors. What does not help to tell phones
apart, the voice and the room, has no way through.

Sources:
    van den Oord et al. 2017 (VQ-VAE), arXiv:1711.00937; Graves et al. 2006 (CTC), ICML; Zeng et
    al. 2024 (GLM-4-Voice), arXiv:2412.02612; Park et al. 2019 (SpecAugment), arXiv:1904.08779.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.errors import InputError
from speechlm.protocols import Need, SegmentBatch
from speechlm_tokenizers.phones import Labels, edit_distance
from speechlm_tokenizers.quantizers import CodebookLearner, ResidualVQ, perplexity

NOISE_DB = (10.0, 60.0)
"""How far below a recording the noise may lie that training adds."""
GAPS = 2
"""Stretches of time, and bands of frequency, that training leaves out of each recording."""
GAP_FRAMES = 10
"""Most frames of a stretch."""
GAP_SHARE = 0.15
"""Most of all bands that one band of frequency takes."""


class Body(Protocol):
    """An encoder with a place for a codebook: an ``nn.Module``."""

    def features(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What is heard of a padded batch.

        Args:
            waves: float32 [B, T]; zero beyond ``lengths``.
            lengths: int64 [B].

        Returns:
            float32 [B, F, C], 0 a usual value of it; and frames of each, int64 [B].
        """
        ...

    def lower(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors to quantize, float [B, U, D], and how many of each, int64 [B]."""
        ...

    def upper(self, vectors: Tensor, frames: Tensor) -> Tensor:
        """From quantized vectors to what the labels are read from, float [B, F', D]."""
        ...


class CTCTraining(nn.Module):
    """A tokenizer in training, see :class:`speechlm.protocols.PartTraining`."""

    needs: frozenset[Need] = frozenset({"text"})
    sample_rate = 16_000
    whole = True

    def __init__(
        self,
        body: nn.Module,
        labels: Labels,
        make: Callable[[CTCTraining], Any],
        *,
        dim: int,
        hop_length: int,
        num_units: int,
        commitment: float,
        quantize_after: int,
        seed: int,
    ) -> None:
        """Begin.

        Args:
            body: A :class:`Body`.
            labels: What recordings' texts become.
            make: Builds the tokenizer of what was trained.
            dim: Numbers in a vector of the body.
            hop_length: Samples a unit.
            num_units: Vectors of the codebook.
            commitment: Weight of the distance between vectors and their codes.
            quantize_after: Steps before the codebook starts; until then vectors pass as they are.
            seed: Decides noise, gaps and where dead codes go.
        """
        super().__init__()
        labels.check()
        self.hop_length = hop_length
        self.learning_rates: Mapping[str, float] = {}
        self.body = body
        self.quantizer = ResidualVQ(1, num_units, dim)
        self.learner = CodebookLearner(
            self.quantizer, decay=0.99, warmup=quantize_after, reserve=min(32 * num_units, 65_536)
        )
        self.head = nn.Linear(dim, 1 + len(labels))
        self._labels = labels
        self._make = make
        self._commitment = commitment
        self._seed = seed

    def forward(self, batch: SegmentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + batch.number)
        features, frames = self._hear(_with_noise(batch, draw), batch.lengths)
        features = _with_gaps(features, frames, draw)
        scores, terms = self._read(features, frames, draw)
        ctc, unaligned = self._ctc(scores, frames, self._targets(batch))
        loss = ctc + self._commitment * terms["commitment"]
        terms = {"ctc": ctc, "unaligned": unaligned, **terms}
        return loss, {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def measure(self, batch: SegmentBatch) -> dict[str, Tensor]:
        """``loss``: of CTC, in nats a label; ``error_rate``: of labels, as read greedily."""
        features, frames = self._hear(batch.waves, batch.lengths)
        scores, terms = self._read(features, frames, None)
        targets = self._targets(batch)
        wrong = sum(
            edit_distance(greedy(row[:count]), target)
            for row, count, target in zip(scores, frames.tolist(), targets, strict=True)
        )
        rate = wrong / sum(map(len, targets))
        loss, _ = self._ctc(scores, frames, targets)
        return {"loss": loss, "error_rate": scores.new_tensor(rate), **terms}

    def part(self) -> Any:
        """The tokenizer with the weights of this moment.

        Raises:
            ConfigError: Training ended before there was a codebook.
        """
        self.learner.require_start("quantize_after")
        return self._make(self)

    def tensors(self) -> dict[str, Tensor]:
        """Weights for the tokenizer: the body's by its names, ``codebook``, and ``head.*``."""
        weights = {
            **self.body.state_dict(),
            "codebook": self.quantizer.codebooks[0],
            "head.weight": self.head.weight,
            "head.bias": self.head.bias,
        }
        return {name: t.detach().to("cpu", torch.float32, copy=True) for name, t in weights.items()}

    @property
    def _body(self) -> Body:
        return self.body  # type: ignore[return-value]

    @torch.no_grad()
    def _hear(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        # Spectra span more than half precision can hold.
        with torch.autocast(waves.device.type, enabled=False):
            return self._body.features(waves, lengths)

    def _read(
        self, features: Tensor, frames: Tensor, draw: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores of labels, float32 [B, F', 1 + labels]; the codebook moves where it may draw."""
        vectors, counts = self._body.lower(features, frames)
        real = torch.arange(vectors.shape[1], device=vectors.device) < counts[:, None]
        rows = vectors[real].float()[None]
        ready = self.learner.started()
        if draw is not None:
            ready = self.learner.prepare(self.quantizer, rows.detach(), draw)
        terms = {name: rows.new_zeros(()) for name in ("commitment", "perplexity")}
        if ready:
            quantized = self.quantizer(rows, torch.ones(1, dtype=torch.int64, device=rows.device))
            terms["commitment"] = quantized.loss
            terms["perplexity"] = perplexity(quantized.codes, self.quantizer.vocab_size)[0]
            if draw is not None:
                self.learner.update(self.quantizer, quantized, draw)
            chosen = torch.zeros_like(vectors)
            chosen[real] = quantized.vectors[0].to(vectors.dtype)
            vectors = chosen
        hidden = self._body.upper(vectors, frames)
        return self.head(hidden).float().log_softmax(dim=2), terms

    def _targets(self, batch: SegmentBatch) -> list[list[int]]:
        if batch.texts is None:
            raise InputError(
                "training on labels needs to know what is said: expected a text with each "
                "recording, got none"
            )
        return [self._labels.encode(text) for text in batch.texts]

    def _ctc(
        self, scores: Tensor, frames: Tensor, targets: list[list[int]]
    ) -> tuple[Tensor, Tensor]:
        """Nats a label, mean over recordings; and the share of those that count nothing.

        These have more labels, with a blank between equal ones, than frames.
        """
        labels = torch.tensor([label for target in targets for label in target])
        sizes = torch.tensor([len(target) for target in targets])
        loss = F.ctc_loss(
            scores.transpose(0, 1),
            labels.to(scores.device),
            frames,
            sizes.to(scores.device),
            zero_infinity=True,
        )
        least = sizes + torch.tensor([sum(a == b for a, b in pairwise(t)) for t in targets])
        return loss, (least > frames.cpu()).to(scores).mean()


def greedy(scores: Tensor) -> list[int]:
    """The most probable label of each frame of [F, 1 + labels], repeats merged, blanks dropped."""
    best = torch.unique_consecutive(scores.argmax(dim=1))
    labels: list[int] = best[best > 0].tolist()
    return labels


def _with_noise(batch: SegmentBatch, draw: torch.Generator) -> Tensor:
    """The waves of a batch with white noise, each at a level of its own."""
    waves, lengths = batch.waves, batch.lengths
    level = (waves.square().sum(dim=1) / lengths).sqrt()
    quietest, loudest = NOISE_DB[1], NOISE_DB[0]
    below = loudest + (quietest - loudest) * torch.rand(len(waves), generator=draw)
    level = level * (10 ** (-below / 20)).to(waves)
    noise = torch.randn(waves.shape, generator=draw).to(waves)
    real = torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]
    return waves + noise * level[:, None] * real


def _with_gaps(features: Tensor, frames: Tensor, draw: torch.Generator) -> Tensor:
    """Features float [B, F, C] with stretches of time and bands of frequency left out."""
    batch, most, width = features.shape
    times = torch.arange(most)
    # Spectra stand side by side in a frame: a band has the same place in each.
    bands = torch.arange(width) % (width // 2)
    for _ in range(GAPS):
        time = _gap(times, frames.cpu().float(), GAP_FRAMES, draw)
        band = _gap(bands, torch.full((batch,), width / 2), GAP_SHARE * width / 2, draw)
        left_out = time[:, :, None] | band[:, None, :]
        features = features.masked_fill(left_out.to(features.device), 0.0)
    return features


def _gap(places: Tensor, size: Tensor, longest: float, draw: torch.Generator) -> Tensor:
    """Which of ``places`` lie in a stretch drawn within 0..size, bool [B, len(places)]."""
    length = longest * torch.rand(len(size), generator=draw)
    start = torch.rand(len(size), generator=draw) * (size - length).clamp(min=0.0)
    return (places >= start[:, None]) & (places < (start + length)[:, None])
