"""``phone-ctc``: units that were learnt from what is said, trained here on texts and recordings.

A conformer reads log-mels; after some of its layers every frame becomes the nearest of a few
hundred vectors, and the layers above must tell the phones, by CTC, from these vectors alone. The
numbers of the vectors are the units. Whole recordings up to ``window_s + context_s`` are heard in
one piece, longer ones in windows that overlap, on a grid that is the same for a stream.

Sources:
    Zeng et al. 2024 (GLM-4-Voice), arXiv:2412.02612, for a supervised quantizer; Yusuyin et al.
    2024 (Whistle), arXiv:2406.02166, for phones of many languages as labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from speechlm.config import build
from speechlm.errors import ConfigError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.settings import at_least
from speechlm.units import Units
from speechlm_tokenizers.kmeans import assign
from speechlm_tokenizers.phone_ctc_model import (
    FRAME,
    SAMPLE_RATE,
    Encoder,
    EncoderShape,
    LogMels,
    read_encoder,
    write_encoder,
)
from speechlm_tokenizers.phone_ctc_training import CTCTraining, greedy
from speechlm_tokenizers.phones import LabelKind, Labels
from speechlm_tokenizers.windows import Window, Windows

KIND = "phone-ctc"


@dataclass(frozen=True, kw_only=True, slots=True)
class PhoneCTCConfig:
    """The tokenizer's options, ``tokenizer.options`` of a run."""

    labels: LabelKind = "phones"
    """What training must be able to read from the units: phones of the texts, or characters."""
    language: str = "en-us"
    """Of the texts, for phones: espeak-ng's code."""
    alphabet: str = ""
    """Each label's character; empty for all of the International Phonetic Alphabet, or for what
    written English needs."""
    num_units: int = 512
    """Vectors of the codebook."""
    bottleneck_layer: int = 3
    """Layers of the encoder below the codebook."""
    pooling: int = 1
    """Frames, of 20 ms, that share a unit: 1 gives 50 units a second, 2 gives 25."""
    encoder: EncoderShape = field(default_factory=EncoderShape)
    model: str | None = None
    """A w2v-BERT 2.0 to start from, folder or hub id; it brings the encoder's shape."""
    window_s: float = 12.0
    """Seconds of a long recording that are computed together."""
    context_s: float = 2.0
    """Seconds on either side that they hear besides."""
    dropout: float = 0.1
    commitment: float = 0.25
    """Weight of the distance between vectors and their codes beside the loss of CTC."""
    quantize_after: int = 300
    """Steps of training before the codebook starts, from k-means over what there is by then."""

    def __post_init__(self) -> None:
        at_least(2, "num_units", self.num_units)
        at_least(0, "quantize_after", self.quantize_after)
        if not 1 <= self.bottleneck_layer <= self.encoder.num_layers:
            raise ConfigError(
                f"bottleneck_layer must be within 1..encoder.num_layers "
                f"({self.encoder.num_layers}), got {self.bottleneck_layer}"
            )
        if self.pooling not in (1, 2, 4):
            raise ConfigError(f"pooling must be 1, 2 or 4, got {self.pooling}")
        if not (0.1 <= self.window_s <= 600 and 0 <= self.context_s <= 60):
            raise ConfigError(
                "expected window_s within 0.1..600 s and context_s within 0..60 s, got "
                f"{self.window_s} and {self.context_s}"
            )
        if not (0 <= self.dropout < 1 and self.commitment >= 0):
            raise ConfigError(
                "expected dropout at least 0 and below 1 and commitment at least 0, got "
                f"{self.dropout} and {self.commitment}"
            )

    @property
    def hop_length(self) -> int:
        return FRAME * self.pooling

    def names(self) -> Labels:
        return Labels(kind=self.labels, language=self.language, alphabet=self.alphabet)


class PhoneBody(nn.Module):
    """The encoder with a place for the codebook, as :class:`CTCTraining` takes it."""

    def __init__(self, config: PhoneCTCConfig, encoder: Encoder) -> None:
        super().__init__()
        self._position, self._pooling = config.bottleneck_layer, config.pooling
        self.mels = LogMels(config.encoder.num_mels)
        self.encoder = encoder

    def features(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B, T] to float32 [B, F, 2 * mels] at 50 Hz, and frames of each, int64 [B]."""
        features: tuple[Tensor, Tensor] = self.mels(waves, lengths)
        return features

    def lower(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """What to quantize: float [B, ceil(F / pooling), D], and how many of each, int64 [B]."""
        mask = torch.arange(features.shape[1], device=features.device) < frames[:, None]
        hidden = self.encoder.project(features, mask)
        hidden = self.encoder.run(hidden, 0, self._position, mask)
        if self._pooling > 1:
            # The mean of those frames that there are.
            missing = -hidden.shape[1] % self._pooling
            hidden = F.pad(hidden * mask[..., None], (0, 0, 0, missing))
            count = F.pad(mask.to(hidden), (0, missing))
            hidden = rearrange(hidden, "b (f p) d -> b f p d", p=self._pooling).sum(dim=2)
            count = rearrange(count, "b (f p) -> b f p", p=self._pooling).sum(dim=2)
            hidden = hidden / count.clamp(min=1.0)[..., None]
        return hidden, -(-frames // self._pooling)

    def upper(self, vectors: Tensor, frames: Tensor) -> Tensor:
        """From quantized vectors to what labels are read from, float [B, F, D]."""
        hidden = vectors.repeat_interleave(self._pooling, dim=1)[:, : int(frames.max())]
        mask = torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]
        return self.encoder.run(hidden, self._position, len(self.encoder.layers), mask)


class PhoneCTC:
    """Nearest codes of a supervised encoder's frames, and what it reads from them."""

    sample_rate = SAMPLE_RATE
    num_codebooks = 1
    streaming: Literal["exact"] = "exact"

    def __init__(self, config: PhoneCTCConfig, tensors: Mapping[str, Tensor]) -> None:
        """Build one.

        Args:
            config: As it was trained; ``model`` is None, the weights are here.
            tensors: ``encoder.*`` by the names of a w2v-BERT; ``codebook``, float32 [V, D];
                ``head.weight`` and ``head.bias``, from the encoder's output to labels.
        """
        self.config = config
        self._tensors = dict(tensors)
        self.fingerprint = fingerprint(KIND, asdict(config), self._tensors)
        self.labels = config.names()
        self.vocab_size = config.num_units
        self.hop_length = config.hop_length
        self.frame_rate = self.sample_rate / self.hop_length
        with torch.device("meta"):
            encoder = Encoder(config.encoder)
        encoder.load_state_dict(self._encoder_tensors(), assign=True)
        self._body = PhoneBody(config, encoder).eval().requires_grad_(False)
        self._window = self._samples(config.window_s)
        self._context = self._samples(config.context_s)
        self.lookahead = self._window + self._context - self.hop_length
        self.device = torch.device("cpu")
        self._codebook, self._weight, self._bias = (
            tensors[name] for name in ("codebook", "head.weight", "head.bias")
        )

    def _samples(self, duration_s: float) -> int:
        return round(duration_s * self.frame_rate) * self.hop_length

    @property
    def unit_features(self) -> Tensor:
        """What a unit sounds like, float32 [V, D]: similar units have similar rows."""
        return self._tensors["codebook"]

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
        return torch.cat([stream.push(wave), stream.finish()], dim=1)

    def stream(self) -> PhoneCTCStream:
        return PhoneCTCStream(self)

    def windows(self) -> Windows:
        """What cuts a recording, by samples."""
        return Windows(self._window, before=self._context, after=self._context)

    @torch.inference_mode()
    def quantize(self, window: Window) -> Tensor:
        """The units that a window stands for, int64 [1, m]."""
        return self._read(window)[1][None].cpu()

    @torch.inference_mode()
    def scores(self, wave: Tensor) -> Tensor:
        """How probable each label is, read from the units alone.

        Args:
            wave: float32 [T] at 16 kHz.

        Returns:
            Natural logarithms, float32 [ceil(T / 320), 1 + labels], 50 frames a second; label 0
            is CTC's blank.
        """
        windows = self.windows()
        pieces = [self._score(window) for window in windows.push(wave)]
        if (last := windows.finish()) is not None:
            pieces.append(self._score(last))
        return torch.cat([wave.new_zeros(0, 1 + len(self.labels)), *pieces])

    def transcribe(self, wave: Tensor) -> str:
        """What is said in float32 [T] at 16 kHz, in labels: phones run together, or characters.

        The most probable label of each frame; there is no language model.
        """
        return self.labels.decode(greedy(self.scores(wave)))

    def _read(self, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """All units of a window, int64 [m']; those that it stands for; and its frames."""
        content = window.content.to(self.device)
        length = torch.tensor([content.shape[0]], device=self.device)
        features, frames = self._body.features(content[None], length)
        vectors, _ = self._body.lower(features, frames)
        codes = assign(vectors[0], self._codebook)
        hop = self.hop_length
        return codes, codes[window.skip // hop : -(-(window.skip + window.keep) // hop)], frames

    def _score(self, window: Window) -> Tensor:
        codes, _, frames = self._read(window)
        hidden = self._body.upper(self._codebook[codes][None], frames)[0]
        kept = hidden[window.skip // FRAME : -(-(window.skip + window.keep) // FRAME)]
        return F.linear(kept, self._weight, self._bias).log_softmax(dim=1).cpu()

    def export_encoder(self, folder: Path) -> None:
        """Write the encoder as transformers' ``Wav2Vec2BertModel``, all layers, no codebook.

        With ``speechlm fit`` it serves ``ssl-kmeans`` as any other encoder does; layer
        ``bottleneck_layer`` is what the codebook saw.
        """
        write_encoder(folder, self.config.encoder, self._encoder_tensors())

    def _encoder_tensors(self) -> dict[str, Tensor]:
        return {
            name.removeprefix("encoder."): tensor
            for name, tensor in self._tensors.items()
            if name.startswith("encoder.")
        }

    def to(self, device: torch.device | str) -> Self:
        """Compute there from now on; units still come to the CPU."""
        self.device = torch.device(device)
        self._body.to(self.device)
        self._codebook, self._weight, self._bias = (
            tensor.to(self.device) for tensor in (self._codebook, self._weight, self._bias)
        )
        return self

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self._tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(PhoneCTCConfig, part.config), part.tensors)

    @classmethod
    def training(cls, options: Mapping[str, Any], seed: int) -> CTCTraining:
        """Begin to train one, see :class:`speechlm.protocols.PartTraining`.

        Args:
            options: Fields of :class:`PhoneCTCConfig`.
            seed: Decides first weights, and what is drawn in training.

        Raises:
            ConfigError: An option is not known or does not fit.
            CheckpointError: ``model`` is no w2v-BERT that can be read.
            PluginError: espeak-ng is needed for phones and not installed.
        """
        config = build(PhoneCTCConfig, options, "tokenizer.options")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if config.model is None:
                encoder = Encoder(config.encoder, config.dropout)
            else:
                if "encoder" in options:
                    raise ConfigError(
                        f"tokenizer.options.model={config.model} brings its own shape: expected no "
                        "tokenizer.options.encoder beside it"
                    )
                encoder = read_encoder(config.model, config.dropout)
                config = replace(config, encoder=encoder.shape, model=None)
            return CTCTraining(
                PhoneBody(config, encoder),
                config.names(),
                lambda trained: cls(config, trained.tensors()),
                dim=config.encoder.model_dim,
                hop_length=config.hop_length,
                num_units=config.num_units,
                commitment=config.commitment,
                quantize_after=config.quantize_after,
                seed=seed,
            )


class PhoneCTCStream:
    """One live recording; see :class:`speechlm.protocols.TokenizerStream`."""

    def __init__(self, tokenizer: PhoneCTC) -> None:
        self._tokenizer = tokenizer
        self._windows = tokenizer.windows()

    def push(self, samples: Tensor) -> Tensor:
        """Take float32 [n] at 16 kHz; give the units now certain, int64 [1, m]."""
        return self._quantize(self._windows.push(samples))

    def finish(self) -> Tensor:
        """Give the units still held back, int64 [1, m]."""
        last = self._windows.finish()
        return self._quantize(iter(() if last is None else (last,)))

    def _quantize(self, windows: Iterator[Window]) -> Tensor:
        codes = [self._tokenizer.quantize(window) for window in windows]
        return torch.cat([torch.zeros(1, 0, dtype=torch.int64), *codes], dim=1)
