"""The options of tokenizer ``prosody``, and what measures and normalises rows by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from speechlm.errors import ConfigError
from speechlm.protocols import AudioTokenizer
from speechlm_tokenizers.pitch import PitchTracker
from speechlm_tokenizers.prosody_rows import Normaliser, Sounds

Row = Literal["f0", "energy", "rate"]
SOUND_ROWS = ("f0", "energy")
"""Rows that are measured on blocks of sound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProsodyConfig:
    """The tokenizer's options, beside ``base`` (a fitted tokenizer's folder) and ``style_model``
    (a transformers audio classifier, folder or hub id; no style row without)."""

    streams: tuple[Row, ...] = ("f0", "energy", "rate")
    """Rows below the base's, in this order; style comes last."""
    f0_bins: int = 32
    """One of them unvoiced."""
    energy_bins: int = 16
    """One of them silence."""
    rate_bins: int = 8
    floor_hz: float = 60.0
    """Lowest pitch looked for, Hz."""
    ceiling_hz: float = 500.0
    """Highest."""
    block_s: float = 0.5
    """Pitch and energy come in blocks of this, s."""
    context_s: float = 0.25
    """What Praat hears before and after a block, s."""
    normalise: Literal["running", "none"] = "running"
    """``running``: less the mean of the voice heard so far. ``none``: as they are, which tells
    voices apart."""
    prior_s: float = 2.0
    """Seconds of speech that the corpus' mean counts for against the voice heard so far."""
    silence_db: float = 40.0
    """Frames so far below the loudest one so far are silence, dB."""
    rate_window_s: float = 1.0
    """Time in which changes of the unit are counted, s."""
    style_window_s: float = 1.0
    """One label for each such stretch, s."""
    fit_frames: int = 2_000_000
    """Frames to take quantiles of, at most; recordings after them are not heard."""

    def __post_init__(self) -> None:
        if len(set(self.streams)) < len(self.streams):
            raise ConfigError(
                f"expected streams of {', '.join(get_args(Row))}, each at most once, "
                f"got {list(self.streams)}"
            )
        if min(self.f0_bins, self.energy_bins) < 3 or min(self.rate_bins, self.fit_frames) < 2:
            raise ConfigError(
                "expected f0_bins and energy_bins of 3 or more, rate_bins and fit_frames of 2 or "
                f"more, got {self.f0_bins}, {self.energy_bins}, {self.rate_bins} and "
                f"{self.fit_frames}"
            )
        if not 20 <= self.floor_hz < self.ceiling_hz <= 4000:
            raise ConfigError(
                "expected 20 <= floor_hz < ceiling_hz <= 4000, got "
                f"{self.floor_hz:g} and {self.ceiling_hz:g}"
            )
        if self.context_s < 3 / self.floor_hz:
            raise ConfigError(
                f"expected context_s of at least {3 / self.floor_hz:.3f} s, three periods of "
                f"floor_hz, got {self.context_s:g}"
            )
        for name in (
            "block_s",
            "context_s",
            "prior_s",
            "silence_db",
            "rate_window_s",
            "style_window_s",
        ):
            if not 0 < getattr(self, name) <= 120:
                raise ConfigError(
                    f"expected {name} above 0 and up to 120, got {getattr(self, name):g}"
                )


def num_frames(seconds: float, base: AudioTokenizer) -> int:
    """Frames of ``base`` that come nearest to some time, one at least."""
    return max(1, round(seconds * base.frame_rate))


def pitch_tracker(config: ProsodyConfig, base: AudioTokenizer) -> PitchTracker:
    """What measures pitch, for any number of recordings.

    Raises:
        PluginError: Praat is not installed.
    """
    return PitchTracker(
        sample_rate=base.sample_rate,
        hop_length=base.hop_length,
        block=num_frames(config.block_s, base),
        context=num_frames(config.context_s, base),
        floor_hz=config.floor_hz,
        ceiling_hz=config.ceiling_hz,
    )


def has_sounds(config: ProsodyConfig) -> bool:
    """Whether a row is measured on blocks of sound."""
    return bool(set(SOUND_ROWS) & set(config.streams))


def sounds_of(config: ProsodyConfig, base: AudioTokenizer, tracker: PitchTracker | None) -> Sounds:
    """What measures pitch and energy of one recording."""
    return Sounds(
        tracker,
        hop_length=base.hop_length,
        block=num_frames(config.block_s, base),
        context=num_frames(config.context_s, base),
    )


def normaliser_of(
    config: ProsodyConfig, base: AudioTokenizer, tensors: Mapping[str, Tensor]
) -> Normaliser:
    """What normalises one recording, from the means in ``tensors``: see ``Prosody``."""
    names = [f"{row}_mean" for row in SOUND_ROWS if config.normalise == "running"]
    means = {name: float(tensors[name]) for name in names if name in tensors}
    return Normaliser(
        {name.removesuffix("_mean"): mean for name, mean in means.items()},
        weight=config.prior_s * base.frame_rate,
        silence_db=config.silence_db,
    )
