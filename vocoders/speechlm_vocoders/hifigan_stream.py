"""Units rendered as they come: exact however they are cut, with durations predicted or given."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from speechlm.errors import InputError
from speechlm.streaming import Blocks, State
from speechlm.units import collapse_repeats
from speechlm_vocoders.hifigan_model import HiFiGAN, HiFiGANConfig, frames_of


class UnitHiFiGANStream:
    """One live utterance; see :class:`speechlm.protocols.VocoderStream`."""

    def __init__(
        self,
        model: HiFiGAN,
        block: int,
        *,
        voice: Tensor | None,
        style: Tensor | None,
        predict_durations: bool,
    ) -> None:
        self._model = model
        self._voice, self._style = voice, style
        self._lengths = DurationStream(model) if predict_durations else None
        self._codes = Blocks(block)
        self._f0 = Blocks(block * model.config.repeats)
        self._state: State = {}

    def push(self, codes: Tensor, f0: Tensor | None = None) -> Tensor:
        """Take units int64 [K, m]; give the samples now certain, float32 [n].

        Args:
            codes: Units.
            f0: Where the vocoder takes a pitch contour: theirs, float32 [m * repeats].
        """
        check_codes(codes, self._model.config)
        self._check_f0(codes, f0)
        if self._lengths is not None:
            codes = _expand(*self._lengths.push(codes))
        blocks = list(self._codes.push(codes))
        contours = [None] * len(blocks) if f0 is None else list(self._f0.push(f0.float()))
        pairs = zip(blocks, contours, strict=True)
        return _join(self._render(block, contour, last=False) for block, contour in pairs)

    def finish(self) -> Tensor:
        """Give the samples still held back, float32 [n], so that all units have theirs."""
        waves = []
        if self._lengths is not None:
            for block in self._codes.push(_expand(*self._lengths.finish())):
                waves.append(self._render(block, None, last=False))
        left, left_f0 = self._codes.finish(), self._f0.finish()
        if left is not None:
            block, size = left
            contour = None
            if left_f0 is not None:
                contour = left_f0[0][: left_f0[1]]
            waves.append(self._render(block[:, :size], contour, last=True))
        elif self._state:
            sizes = len(self._model.config.codebook_sizes)
            empty_f0 = torch.zeros(0) if self._model.config.raw_f0 else None
            nothing = torch.zeros(sizes, 0, dtype=torch.int64)
            waves.append(self._render(nothing, empty_f0, last=True))
        return _join(waves)

    @torch.inference_mode()
    def _render(self, codes: Tensor, f0: Tensor | None, *, last: bool) -> Tensor:
        contour = None if f0 is None else f0[None]
        features = self._model.embed(codes[None], self._voice, self._style, contour)
        wave: Tensor = self._model(features, self._state, last)
        return wave[0]

    def _check_f0(self, codes: Tensor, f0: Tensor | None) -> None:
        config = self._model.config
        if not config.raw_f0:
            if f0 is not None:
                raise InputError("this vocoder takes no pitch contour; give no f0")
            return
        expected = codes.shape[1] * config.repeats
        if f0 is None or f0.shape != (expected,):
            got = "none" if f0 is None else str(list(f0.shape))
            raise InputError(
                f"expected a pitch contour beside the units, float32 [{expected}], got {got}"
            )


class DurationStream:
    """Units to units and how long they last: repeats are merged, the rest is predicted."""

    def __init__(self, model: HiFiGAN) -> None:
        assert model.durations is not None
        self._embedding, self._predictor = model.embeddings[0], model.durations
        self._state: State = {}
        self._newest = torch.zeros(len(model.embeddings), 0, dtype=torch.int64)
        self._waiting = self._newest
        """The units whose durations are not yet certain."""

    def push(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Take units int64 [K, m]; give those now certain, [K, u], and their frames, [u]."""
        known = self._newest.shape[1]
        merged, _ = collapse_repeats(torch.cat([self._newest, codes], dim=1))
        self._newest = merged[:, -1:]
        self._waiting = torch.cat([self._waiting, merged[:, known:]], dim=1)
        # One by one, so that it does not matter how many came at once.
        return self._take([self._predict(unit, last=False) for unit in merged[0, known:]])

    def finish(self) -> tuple[Tensor, Tensor]:
        """Give the units still held back, [K, u], and their frames, [u]."""
        if not self._state:
            return self._take([])
        return self._take([self._predict(self._newest[0, :0], last=True)])

    @torch.inference_mode()
    def _predict(self, unit: Tensor, *, last: bool) -> Tensor:
        embedded = self._embedding(unit.reshape(-1)).T[None]
        return frames_of(self._predictor(embedded, self._state, last)[0])

    def _take(self, frames: list[Tensor]) -> tuple[Tensor, Tensor]:
        durations = torch.cat([torch.zeros(0, dtype=torch.int64), *frames])
        codes = self._waiting[:, : len(durations)]
        self._waiting = self._waiting[:, len(durations) :]
        return codes, durations


def check_codes(codes: Tensor, config: HiFiGANConfig) -> None:
    """Raise InputError unless codes, int64 [K, m], are all of the vocabulary."""
    sizes = config.codebook_sizes
    if codes.ndim != 2 or codes.shape[0] != len(sizes):
        raise InputError(
            f"expected units [{len(sizes)}, m], a row a codebook, got {list(codes.shape)}"
        )
    if codes.shape[1] == 0:
        return
    for row, size in zip(codes, sizes, strict=True):
        if not 0 <= int(row.min()) <= int(row.max()) < size:
            raise InputError(
                f"expected units within 0..{size - 1}, got {int(row.min())}..{int(row.max())}"
            )


def _expand(codes: Tensor, durations: Tensor) -> Tensor:
    return codes.repeat_interleave(durations, dim=1)


def _join(waves: Iterable[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0), *waves])
