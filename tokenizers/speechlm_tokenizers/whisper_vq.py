"""``whisper-vq``: units of a Whisper encoder with a codebook in its middle, GLM-4-Voice's kind.

A recording is read in windows of 30 s that stand side by side, as the published model was
trained: within a window attention goes back to its beginning, beyond it nothing is remembered.
Each recording and window is computed by itself, block after block, so a stream gives what the
whole gives, to the bit. It may come

* a window at a time: units are those of GLM-4-Voice's own code, but a window must have ended;
* a block of 4 s at a time. Whisper flattens what is 80 dB below the window's loudest sound; here
  it is the loudest *so far*, so the quietest bands of a window's first blocks can differ.

Source:
    Zeng et al. 2024 (GLM-4-Voice), arXiv:2412.02612.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.config import build
from speechlm.errors import CheckpointError, ConfigError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.units import Units
from speechlm_tokenizers.encoder_checkpoint import (
    CONFIG_NAME,
    open_folder,
    read_shape,
    read_tensors,
)
from speechlm_tokenizers.kmeans import assign
from speechlm_tokenizers.phone_ctc_training import CTCTraining
from speechlm_tokenizers.whisper_vq_model import (
    FRAME,
    MARGIN,
    MEL_HOP,
    SAMPLE_RATE,
    Past,
    WhisperEncoder,
    WhisperMels,
    WhisperShape,
    encoder_name,
)

KIND = "whisper-vq"
PUBLISHED = "THUDM/glm-4-voice-tokenizer"
CODEBOOK = "codebook.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class WhisperVQOptions:
    """What ``speechlm fit`` makes one of, ``tokenizer.options`` of a run."""

    model: str = PUBLISHED
    """A checkpoint of a WhisperVQEncoder, alone or in its model: a folder or hub id."""
    sha256: str | None = None
    """What the SHA-256 of its one file of weights must begin with."""
    stream: Literal["window", "block"] = "window"
    """How much is heard before units come: see this module's docstring."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WhisperVQConfig:
    """What decides the units, beside weights."""

    shape: WhisperShape = field(default_factory=WhisperShape)
    stream: Literal["window", "block"] = "window"

    def __post_init__(self) -> None:
        shape = self.shape
        if self.stream == "block" and not (shape.attention == "block" and shape.causal_convolution):
            raise ConfigError(
                "tokenizer.options.stream is 'block', but this encoder's attention or convolution "
                "hears a window's end from its beginning; expected 'window'"
            )


class WhisperVQ:
    """Nearest codes of a Whisper encoder's frames, 12.5 a second in the published one."""

    sample_rate = SAMPLE_RATE
    num_codebooks = 1
    streaming: Literal["exact"] = "exact"

    def __init__(self, config: WhisperVQConfig, tensors: Mapping[str, Tensor]) -> None:
        """Build one.

        Args:
            config: What it is.
            tensors: By the names of the published checkpoint: the encoder's, and
                ``codebook.weight``, float32 [V, D].
        """
        self.config = config
        self._tensors = dict(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self._tensors)
        with torch.device("meta"):
            encoder = WhisperEncoder(config.shape)
        weights = {name: t for name, t in tensors.items() if name != CODEBOOK}
        encoder.load_state_dict(weights, assign=True)
        self.encoder = encoder.eval().requires_grad_(False)
        self.codebook = tensors[CODEBOOK]
        self.mels = WhisperMels(config.shape.num_mels)
        self.device = torch.device("cpu")
        self.vocab_size = config.shape.num_units
        self.hop_length = FRAME * config.shape.pooling
        self.frame_rate = self.sample_rate / self.hop_length
        self.window = config.shape.max_frames * FRAME
        """Samples that are heard together."""
        self.step = self.window if config.stream == "window" else config.shape.block * FRAME
        """Samples that are computed together."""
        ahead = 0 if config.stream == "window" else MARGIN - MEL_HOP
        self.lookahead = self.step + ahead - self.hop_length

    @property
    def unit_features(self) -> Tensor:
        """What a unit sounds like, float32 [V, D]: similar units have similar rows."""
        return self._tensors[CODEBOOK]

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> list[Units]:
        """Tokenize a padded batch, see :class:`speechlm.protocols.AudioTokenizer`."""
        sizes = [wave.shape[1]] * wave.shape[0] if lengths is None else lengths.tolist()
        return [
            Units(
                codes=self._encode_one(row[:size]),
                frame_rate=self.frame_rate,
                fingerprint=self.fingerprint,
            )
            for row, size in zip(wave, sizes, strict=True)
        ]

    def _encode_one(self, wave: Tensor) -> Tensor:
        stream = self.stream()
        parts = [stream.push(window) for window in torch.split(wave, self.window)]
        return torch.cat([*parts, stream.finish()], dim=1)

    def stream(self) -> WhisperVQStream:
        return WhisperVQStream(self)

    def to(self, device: torch.device | str) -> Self:
        """Compute there from now on; units still come to the CPU."""
        self.device = torch.device(device)
        self.encoder.to(self.device)
        self.mels.to(self.device)
        self.codebook = self.codebook.to(self.device)
        return self

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self._tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(WhisperVQConfig, part.config), part.tensors)

    @classmethod
    def needs_corpus(cls, options: Mapping[str, Any]) -> bool:
        return False

    @classmethod
    def fit(cls, waves: Iterable[Tensor], options: Mapping[str, Any], seed: int) -> Self:
        """Read a checkpoint; nothing is fitted.

        Raises:
            ConfigError: An option is not known, or the encoder cannot stream as it asks.
            CheckpointError: Missing, truncated, changed, or no Whisper with a codebook.
        """
        chosen = build(WhisperVQOptions, options, "tokenizer.options")
        folder = open_folder(chosen.model, PUBLISHED)
        try:
            shape = WhisperShape.of_checkpoint(read_shape(folder))
        except ConfigError as error:
            raise CheckpointError(f"{folder / CONFIG_NAME}: {error}") from error
        config = WhisperVQConfig(shape=shape, stream=chosen.stream)
        with torch.device("meta"):
            wanted = WhisperEncoder(shape).state_dict()
            wanted[CODEBOOK] = torch.empty(shape.num_units, shape.model_dim)
        return cls(config, read_tensors(folder, wanted, encoder_name, sha256=chosen.sha256))

    @classmethod
    def training(cls, options: Mapping[str, Any], seed: int) -> CTCTraining:
        """Begin to train one from a plain Whisper, see :class:`speechlm.protocols.PartTraining`.

        Args:
            options: Fields of :class:`speechlm_tokenizers.whisper_vq_training.WhisperVQTraining`.
            seed: Decides what is drawn in training.

        Raises:
            ConfigError: An option is not known or does not fit.
            CheckpointError: ``model`` is no Whisper that can be read.
            PluginError: espeak-ng is needed for phones and not installed.
        """
        from speechlm_tokenizers.whisper_vq_training import begin_training

        return begin_training(cls, options, seed)


class WhisperVQStream:
    """One live recording; see :class:`speechlm.protocols.TokenizerStream`."""

    def __init__(self, tokenizer: WhisperVQ) -> None:
        self._tokenizer = tokenizer
        self._parts: list[Tensor] = []
        """The present window as far as it has come."""
        self._held = 0
        self._begin_window()

    def _begin_window(self) -> None:
        self._past = Past()
        self._loudest = torch.tensor(-torch.inf, device=self._tokenizer.device)
        self._done = 0
        """Samples of the window whose units are out."""

    def push(self, samples: Tensor) -> Tensor:
        """Take float32 [n] at 16 kHz; give the units now certain, int64 [1, m]."""
        self._parts.append(samples)
        self._held += samples.shape[0]
        if self._held < self._due():
            if len(self._parts) > 256:
                self._parts = [torch.cat(self._parts)]
            return torch.zeros(1, 0, dtype=torch.int64)
        held, codes = torch.cat(self._parts), []
        while len(held) >= self._due():
            window = held[: self._tokenizer.window]
            end = min(self._done + self._tokenizer.step, self._tokenizer.window)
            codes.append(self._advance(window, end, len(window)))
            if end == self._tokenizer.window:
                held = held[end:]
                self._begin_window()
        # A copy: a view would keep all that was ever pushed.
        self._parts, self._held = [held.clone()], len(held)
        return torch.cat(codes, dim=1)

    def finish(self) -> Tensor:
        """Give the units still held back, int64 [1, m]."""
        tokenizer = self._tokenizer
        held = torch.cat([*self._parts, torch.zeros(0)])
        padded = F.pad(held, (0, -len(held) % tokenizer.hop_length))
        codes = [torch.zeros(1, 0, dtype=torch.int64)]
        while self._done < len(padded):
            end = min(self._done + tokenizer.step, len(padded))
            codes.append(self._advance(padded, end, len(held)))
        return torch.cat(codes, dim=1)

    def _due(self) -> int:
        """Samples of the window with which the next step can be computed."""
        end = self._done + self._tokenizer.step
        if end >= self._tokenizer.window:
            return self._tokenizer.window
        return end + MARGIN - MEL_HOP

    @torch.inference_mode()
    def _advance(self, window: Tensor, end: int, num_real: int) -> Tensor:
        """Compute the next step.

        Args:
            window: The window as far as it has come, float32 [n].
            end: Where the step ends; if it is n, the window ends there too.
            num_real: How many samples are the recording's; what follows is padding.

        Returns:
            int64 [1, (end - done) / hop_length].
        """
        tokenizer = self._tokenizer
        spectra = tokenizer.mels.spectra(self._around(window, end).to(tokenizer.device))
        self._loudest = torch.maximum(self._loudest, spectra.max())
        mels = tokenizer.mels.compress(spectra, self._loudest)
        places = torch.arange(self._done, end, FRAME, device=tokenizer.device)
        vectors = tokenizer.encoder(mels[None], (places < num_real)[None], self._past)
        self._done = end
        return assign(vectors[0], tokenizer.codebook)[None].cpu()

    def _around(self, window: Tensor, end: int) -> Tensor:
        """The step's samples and those that its spectra see beside them; a window's ends mirror."""
        start, after = self._done, MARGIN - MEL_HOP
        before = window[1 : MARGIN + 1].flip(0) if start == 0 else window[start - MARGIN : start]
        if end == len(window):
            behind = window[end - 1 - after : end - 1].flip(0)
        else:
            behind = window[end : end + after]
        return torch.cat([before, window[start:end], behind])
