"""``dac``: units of the Descript Audio Codec, by windows on a fixed grid.

DAC's convolutions look to both sides, but no further than a fraction of a second. So a recording
is cut into windows with that much around each, and units are the same however it is cut or
batched; up to rounding they are those of the whole in one piece. A recording that fits into one
window is computed in one piece.

Source:
    Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN", arXiv:2306.06546.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.config import build
from speechlm.errors import ConfigError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.units import Units
from speechlm_tokenizers.codec_encoding import choose_codebooks, encode_each, no_codes
from speechlm_tokenizers.codec_loading import (
    CONFIG_NAME,
    aligned,
    checkpoint_config,
    checkpoint_folder,
    fill,
    fold_weight_norm,
    read_weights,
    weights_file,
)
from speechlm_tokenizers.dac_model import DacArchitecture, empty_dac
from speechlm_tokenizers.windows import Window, WindowedStream, Windows

KIND = "dac"


@dataclass(frozen=True, kw_only=True, slots=True)
class DacOptions:
    """What ``speechlm fit`` makes a ``dac`` of, ``tokenizer.options`` of a run."""

    model: str = "descript/dac_16khz"
    """A folder or hub id of transformers: ``descript/dac_16khz``, ``_24khz`` or ``_44khz``."""
    num_codebooks: int | None = None
    """Residual codebooks to use; all where ``bandwidth_kbps`` is not given either."""
    bandwidth_kbps: float | None = None
    """The same by the bits that they take."""
    window_s: float = 1.0
    """Seconds computed at once: more are faster, fewer come sooner."""
    sha256: str | None = None
    """What the SHA-256 of the weights' file must begin with, 8 to 64 hexadecimal digits."""

    def __post_init__(self) -> None:
        if not self.window_s > 0:
            raise ConfigError(f"window_s must be more than 0, got {self.window_s}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DacConfig:
    """What a ``dac`` is."""

    architecture: DacArchitecture
    window: int
    """Frames that a window stands for."""


class Dac:
    """Residual units of DAC, of 16 to 44.1 kHz, 50 to 86 a second; windows that stream exactly."""

    streaming: Literal["exact"] = "exact"
    default_vocoder = KIND

    def __init__(self, config: DacConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self.tensors = aligned(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self.tensors)
        shape = config.architecture
        self.sample_rate = shape.sample_rate
        self.hop_length = shape.hop_length
        self.frame_rate = self.sample_rate / self.hop_length
        self.num_codebooks = shape.num_codebooks
        self.vocab_size = shape.codebook_size
        self._before, self._after = shape.encoder_reach()
        self.lookahead = (config.window + self._after - 1) * self.hop_length
        self._model = fill(empty_dac(shape), self.tensors, KIND)

    @property
    def unit_features(self) -> Tensor:
        """The first codebook's vectors, float32 [V, D]: similar units have similar rows."""
        return self.tensors["quantizer.quantizers.0.codebook.weight"]

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> list[Units]:
        """Tokenize a padded batch, see :class:`speechlm.protocols.AudioTokenizer`."""
        return encode_each(self, wave, lengths)

    def stream(self) -> WindowedStream:
        hop = self.hop_length
        windows = Windows(
            self.config.window * hop, before=self._before * hop, after=self._after * hop
        )
        return WindowedStream(windows, self._encode_window, no_codes(self.num_codebooks))

    @torch.no_grad()
    def _encode_window(self, window: Window) -> Tensor:
        """Tokenize a window of float32 [n]; give its own part, int64 [K, ceil(keep / hop)]."""
        hop = self.hop_length
        whole = F.pad(window.content, (0, -len(window.content) % hop))
        codes: Tensor = self._model.encode(whole[None, None]).audio_codes[0]
        first = window.skip // hop
        return codes[:, first : first - (-window.keep // hop)]

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self.tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(DacConfig, part.config), part.tensors)

    @classmethod
    def needs_corpus(cls, options: Mapping[str, Any]) -> bool:
        return False

    @classmethod
    def fit(cls, waves: Iterable[Tensor], options: Mapping[str, Any], seed: int) -> Self:
        """Take a published or own DAC.

        Args:
            waves: Not read: the checkpoint is all it takes.
            options: Fields of :class:`DacOptions`.
            seed: Decides nothing.

        Raises:
            ConfigError: An option is not known or does not fit the model.
            CheckpointError: The model cannot be had, is damaged, or is no DAC.
        """
        wanted = build(DacOptions, options, "tokenizer.options")
        folder = checkpoint_folder(wanted.model, "descript/dac_16khz")
        shape = DacArchitecture.of(checkpoint_config(folder, "dac"), str(folder / CONFIG_NAME))
        count = choose_codebooks(
            wanted.num_codebooks,
            wanted.bandwidth_kbps,
            known=shape.num_codebooks,
            each_kbps=shape.codebook_kbps,
        )
        source = weights_file(folder)
        tensors = fold_weight_norm(read_weights(source, wanted.sha256))
        fill(empty_dac(shape), tensors, source)
        unused = tuple(f"quantizer.quantizers.{n}." for n in range(count, shape.num_codebooks))
        window = max(1, round(wanted.window_s * shape.sample_rate / shape.hop_length))
        config = DacConfig(architecture=replace(shape, num_codebooks=count), window=window)
        return cls(config, {n: t for n, t in tensors.items() if not n.startswith(unused)})
