"""``xcodec``: units of X-Codec, in whose first codebook meaning has a part, by fixed windows.

X-Codec quantizes DAC's features together with those of a HuBERT or WavLM, which hears all of what
it is given at once. So its units hang on where a recording is cut; here it is cut into windows on
a fixed grid with context on both sides, which makes them the same for a stream and the whole, in
any batch. A recording that fits into one window is computed in one piece, as transformers does.

Source:
    Ye et al. 2024, "Codec Does Matter", arXiv:2408.17175.
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
    fold_weight_norm,
    read_weights,
    weights_file,
)
from speechlm_tokenizers.windows import Window, WindowedStream, Windows
from speechlm_tokenizers.xcodec_model import XCodecArchitecture, build_xcodec, for_inference

KIND = "xcodec"


@dataclass(frozen=True, kw_only=True, slots=True)
class XCodecOptions:
    """What ``speechlm fit`` makes an ``xcodec`` of, ``tokenizer.options`` of a run."""

    model: str = "hf-audio/xcodec-hubert-librispeech"
    """A folder or hub id of transformers."""
    num_codebooks: int | None = None
    """Residual codebooks to use; all where ``bandwidth_kbps`` is not given either."""
    bandwidth_kbps: float | None = None
    """The same by the bits that they take."""
    window_s: float = 4.0
    """Seconds computed at once: more are faster and nearer to the whole, fewer come sooner."""
    context_s: float = 1.0
    """Seconds heard before and after a window."""
    sha256: str | None = None
    """What the SHA-256 of the weights' file must begin with, 8 to 64 hexadecimal digits."""

    def __post_init__(self) -> None:
        if not self.window_s > 0:
            raise ConfigError(f"window_s must be more than 0, got {self.window_s}")
        if not self.context_s >= 0:
            raise ConfigError(f"context_s must be at least 0, got {self.context_s}")


@dataclass(frozen=True, kw_only=True, slots=True)
class XCodecConfig:
    """What an ``xcodec`` is."""

    architecture: XCodecArchitecture
    window: int
    """Frames that a window stands for."""
    context: int
    """Frames heard before and after it."""


class XCodec:
    """Residual units of X-Codec, which know what is said; windows that stream exactly."""

    streaming: Literal["exact"] = "exact"
    default_vocoder = KIND

    def __init__(self, config: XCodecConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self.tensors = aligned(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self.tensors)
        shape = config.architecture
        self.sample_rate = shape.acoustic.sample_rate
        self.hop_length = shape.acoustic.hop_length
        self.frame_rate = self.sample_rate / self.hop_length
        self.num_codebooks = shape.num_codebooks
        self.vocab_size = shape.codebook_size
        self.lookahead = (config.window + config.context - 1) * self.hop_length
        self._model = build_xcodec(shape, self.tensors, KIND)

    @property
    def unit_features(self) -> Tensor:
        """The first codebook's vectors, float32 [V, D]: similar units have similar rows."""
        return self.tensors["quantizer.quantizers.0.codebook.embed"]

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> list[Units]:
        """Tokenize a padded batch, see :class:`speechlm.protocols.AudioTokenizer`."""
        return encode_each(self, wave, lengths)

    def stream(self) -> WindowedStream:
        context = self.config.context * self.hop_length
        windows = Windows(self.config.window * self.hop_length, before=context, after=context)
        return WindowedStream(windows, self._encode_window, no_codes(self.num_codebooks))

    @torch.no_grad()
    def _encode_window(self, window: Window) -> Tensor:
        """Tokenize a window of float32 [n]; give its own part, int64 [K, ceil(keep / hop)]."""
        hop = self.hop_length
        whole = F.pad(window.content, (0, -len(window.content) % hop))
        codes: Tensor = self._model.encode(whole[None, None], return_dict=True).audio_codes[0]
        first = window.skip // hop
        return codes[:, first : first - (-window.keep // hop)]

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self.tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(XCodecConfig, part.config), part.tensors)

    @classmethod
    def needs_corpus(cls, options: Mapping[str, Any]) -> bool:
        return False

    @classmethod
    def fit(cls, waves: Iterable[Tensor], options: Mapping[str, Any], seed: int) -> Self:
        """Take a published or own X-Codec.

        Args:
            waves: Not read: the checkpoint is all it takes.
            options: Fields of :class:`XCodecOptions`.
            seed: Decides nothing.

        Raises:
            ConfigError: An option is not known or does not fit the model.
            CheckpointError: The model cannot be had, is damaged, or is no X-Codec.
        """
        wanted = build(XCodecOptions, options, "tokenizer.options")
        folder = checkpoint_folder(wanted.model, "hf-audio/xcodec-hubert-librispeech")
        shape = XCodecArchitecture.of(
            checkpoint_config(folder, "xcodec"), str(folder / CONFIG_NAME)
        )
        count = choose_codebooks(
            wanted.num_codebooks,
            wanted.bandwidth_kbps,
            known=shape.num_codebooks,
            each_kbps=shape.codebook_kbps,
        )
        source = weights_file(folder)
        tensors = for_inference(fold_weight_norm(read_weights(source, wanted.sha256)))
        build_xcodec(shape, tensors, source)
        unused = tuple(f"quantizer.quantizers.{n}." for n in range(count, shape.num_codebooks))
        frame_rate = shape.acoustic.sample_rate / shape.acoustic.hop_length
        config = XCodecConfig(
            architecture=replace(shape, num_codebooks=count),
            window=max(1, round(wanted.window_s * frame_rate)),
            context=round(wanted.context_s * frame_rate),
        )
        return cls(config, {n: t for n, t in tensors.items() if not n.startswith(unused)})
