"""Log-mels, and what turns them into sound: exactly streamed, in stretches of any length.

Two kinds of vocoder. One is the network of ``unit-vocos`` over mels instead of units, trained
beside what predicts them. The other is a HiFi-GAN as transformers keeps one for SpeechT5, read
from a folder, with the mels that it was trained on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.errors import CheckpointError, ConfigError
from speechlm.settings import at_least, build
from speechlm.streaming import State
from speechlm_tokenizers.codec_loading import (
    aligned,
    checkpoint_config,
    checkpoint_folder,
    fill,
    fold_weight_norm,
    read_weights,
    weights_file,
)
from speechlm_vocoders.hifigan_model import HiFiGAN, HiFiGANConfig
from speechlm_vocoders.vocos_model import VocosModel, VocosModelConfig

MIDDLE, SPREAD = -2.5, 1.5
"""About the mean and the standard deviation of speech's log-mels, for the network's input."""
SPEECHT5_WINDOW = 1024
"""What transformers' SpeechT5FeatureExtractor takes spectra of, samples at 16 kHz."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MelConfig:
    """What log-mels are: decimal logarithms of magnitudes, in bands of Slaney's scale."""

    sample_rate: int
    """Hz."""
    hop_length: int
    """Samples a frame."""
    window: int
    """Samples a frame sees, around its first one."""
    num_mels: int = 80
    lowest_hz: float = 0.0
    highest_hz: float | None = None
    """None for half the sample rate."""
    floor: float = 1e-5
    """Magnitudes below this count as this."""

    def __post_init__(self) -> None:
        for name in ("sample_rate", "hop_length", "window", "num_mels"):
            at_least(1, name, getattr(self, name))
        if not 0 <= self.lowest_hz < self.top_hz or self.floor <= 0:
            raise ConfigError(
                f"expected mels from a lower to a higher frequency above a floor, got "
                f"{self.lowest_hz} to {self.top_hz} Hz above {self.floor}"
            )

    @property
    def top_hz(self) -> float:
        return self.sample_rate / 2 if self.highest_hz is None else self.highest_hz


class LogMels(nn.Module):
    """Waveform to log-mels."""

    window: Tensor
    filters: Tensor

    def __init__(self, config: MelConfig) -> None:
        from torchaudio.functional import melscale_fbanks

        super().__init__()
        self.config = config
        filters = melscale_fbanks(
            config.window // 2 + 1,
            config.lowest_hz,
            config.top_hz,
            config.num_mels,
            config.sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        # Both follow from the configuration: a checkpoint need not keep them.
        self.register_buffer("window", torch.hann_window(config.window), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waves: Tensor) -> Tensor:
        """float32 [B, T] to [B, ceil(T / hop_length), num_mels]; beyond the ends is silence."""
        hop = self.config.hop_length
        with torch.autocast(waves.device.type, enabled=False):
            spectra = torch.stft(
                F.pad(waves, (0, -waves.shape[1] % hop)),
                self.config.window,
                hop_length=hop,
                window=self.window,
                pad_mode="constant",
                return_complex=True,
            )
            # The last one is centred on the end.
            mels: Tensor = spectra[..., :-1].abs().mT @ self.filters
            return mels.clamp(min=self.config.floor).log10()


class MelVocos(nn.Module):
    """A Vocos over log-mels."""

    def __init__(self, mels: MelConfig, config: VocosModelConfig) -> None:
        super().__init__()
        self.mels, self.config = mels, config
        self.network = VocosModel(config)

    @property
    def lookahead(self) -> int:
        """Frames of mels beyond the one that is rendered."""
        return self.config.lookahead

    def scaled(self, mels: Tensor) -> Tensor:
        """Log-mels as the network takes them, float32 [B, F, num_mels]."""
        return (mels - MIDDLE) / SPREAD

    def stream(self) -> MelVocosStream:
        return MelVocosStream(self)


class MelVocosStream:
    """One live utterance, float32 [n, num_mels] at a time; see :class:`HiFiGANStream`."""

    def __init__(self, vocoder: MelVocos) -> None:
        self._vocoder = vocoder
        self._state: State = {}
        self._noise = torch.Generator().manual_seed(0)
        self._skip = vocoder.lookahead * vocoder.mels.hop_length

    def push(self, mels: Tensor, *, last: bool) -> Tensor:
        """Take the next frames, and whether they are the last; give samples, float32 [m]."""
        vocoder = self._vocoder
        if last:
            silence = math.log10(vocoder.mels.floor)
            mels = F.pad(mels, (0, 0, 0, vocoder.lookahead), value=silence)
        noise = torch.randn(1, len(mels) * vocoder.mels.hop_length, generator=self._noise)
        waves: Tensor
        waves, _ = vocoder.network(vocoder.scaled(mels[None]), noise, state=self._state)
        skipped = min(self._skip, waves.shape[1])
        self._skip -= skipped
        return waves[0, skipped:]


class MelHiFiGAN(nn.Module):
    """The HiFi-GAN of transformers' SpeechT5."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mels: MelConfig, config: HiFiGANConfig) -> None:
        super().__init__()
        self.mels, self.config = mels, config
        self.network = HiFiGAN(config)
        self.register_buffer("mean", torch.zeros(mels.num_mels))
        self.register_buffer("scale", torch.ones(mels.num_mels))

    @property
    def lookahead(self) -> int:
        """Frames of mels beyond the one that is rendered."""
        return self.config.lookahead

    def stream(self) -> HiFiGANStream:
        return HiFiGANStream(self)


class HiFiGANStream:
    """One live utterance, rendered a stretch of mels at a time."""

    def __init__(self, vocoder: MelHiFiGAN) -> None:
        self._vocoder = vocoder
        self._state: State = {}

    def push(self, mels: Tensor, *, last: bool) -> Tensor:
        """Take the next frames, and whether they are the last; give samples, float32 [m]."""
        features = (mels - self._vocoder.mean) / self._vocoder.scale
        waves: Tensor = self._vocoder.network(features.T[None], self._state, last)
        return waves[0]


MelVocoder = MelVocos | MelHiFiGAN


def read_speecht5_hifigan(model: str) -> MelHiFiGAN:
    """Read a vocoder that transformers saved as ``SpeechT5HifiGan``.

    Args:
        model: A folder or a hub id, such as ``microsoft/speecht5_hifigan``.

    Raises:
        CheckpointError: It is missing, truncated or of another kind.
    """
    folder = checkpoint_folder(model, "microsoft/speecht5_hifigan")
    values = checkpoint_config(folder, "hifigan", "speecht5_hifigan")  # transformers 4 and 5
    if values.get("leaky_relu_slope", 0.1) != 0.1:
        raise CheckpointError(
            f"{folder} has a leaky_relu_slope of {values['leaky_relu_slope']}, expected 0.1"
        )
    try:
        num_mels, rates = int(values["model_in_dim"]), values["upsample_rates"]
        config = build(
            HiFiGANConfig,
            {
                "num_units": 1,
                "embedding_dim": num_mels,
                "channels": values["upsample_initial_channel"],
                "upsample_rates": rates,
                "upsample_kernel_sizes": values["upsample_kernel_sizes"],
                "resblock_kernel_sizes": values["resblock_kernel_sizes"],
                "resblock_dilation_sizes": values["resblock_dilation_sizes"],
            },
        )
        mels = MelConfig(
            sample_rate=values["sampling_rate"],
            hop_length=config.hop_length,
            window=SPEECHT5_WINDOW,
            num_mels=num_mels,
            lowest_hz=80.0,
            highest_hz=7600.0,
            floor=1e-10,
        )
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is no SpeechT5HifiGan that can be read: {error}; download it again"
        ) from error
    vocoder = MelHiFiGAN(mels, config)
    weights = fold_weight_norm(read_weights(weights_file(folder)))
    tensors = _renamed(weights, config.resblock_kernel_sizes)
    tensors["network.embeddings.0.weight"] = torch.zeros(1, num_mels)
    if not values.get("normalize_before", True):
        tensors |= {"mean": torch.zeros(num_mels), "scale": torch.ones(num_mels)}
    return fill(vocoder, aligned(tensors), folder)


def _renamed(weights: dict[str, Tensor], kernels: Sequence[int]) -> dict[str, Tensor]:
    """By the names of :class:`MelHiFiGAN`."""

    def block(match: re.Match[str]) -> str:
        level, place = divmod(int(match[1]), len(kernels))
        layer = "dilated" if match[2] == "1" else "plain"
        return f"network.levels.{level}.blocks.{place}.units.{match[3]}.{layer}."

    tensors = {}
    for name, tensor in weights.items():
        renamed = re.sub(r"^resblocks\.(\d+)\.convs([12])\.(\d+)\.", block, name)
        renamed = re.sub(r"^upsampler\.(\d+)\.", r"network.levels.\1.up.", renamed)
        renamed = re.sub(r"^conv_pre\.", "network.first.", renamed)
        renamed = re.sub(r"^conv_post\.", "network.last.", renamed)
        tensors[renamed] = tensor
    return tensors
