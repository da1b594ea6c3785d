"""``ssl-kmeans``: what a layer of HuBERT, wav2vec 2.0, WavLM, w2v-BERT, ... hears, clustered.

The encoder is a checkpoint; the k-means is fitted here on any corpus, in bounded memory, or was
published with the encoder. Such an encoder sees the whole recording at once, so:

* A recording up to ``window_s`` is computed in one piece, alone, whatever shares its batch: the
  encoders normalize over time, and masks do not undo that.
* Longer ones are computed in windows of ``window_s`` on a fixed grid, each with ``context_s`` on
  either side that is thrown away. A stream gives the same units, after as much delay.

Source:
    Lakhotia et al. 2021 (GSLM), arXiv:2102.01192.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from speechlm.config import build
from speechlm.errors import CheckpointError, ConfigError, CorpusError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.units import Units
from speechlm_tokenizers.centroids import read_quantizer
from speechlm_tokenizers.codec_loading import aligned, below
from speechlm_tokenizers.frame_store import FrameStore
from speechlm_tokenizers.kmeans import fit_resumable
from speechlm_tokenizers.ssl_checkpoint import load_encoder
from speechlm_tokenizers.ssl_features import SAMPLE_RATE, Encoder, EncoderConfig
from speechlm_tokenizers.ssl_options import SSLKMeansOptions, resolve
from speechlm_tokenizers.ssl_quantizers import (
    QUANTIZERS,
    Quantizer,
    QuantizerKind,
    fill_gaps,
)
from speechlm_tokenizers.windows import Window, Windows

KIND = "ssl-kmeans"
BATCH_S = 120.0
"""Audio of a batch on a GPU, padding included, s."""
BATCH_ERROR = 1e-4
"""What a frame in a batch may differ by from the same alone, as a share of its norm: a hundred
times what it does in float32."""
SEAM_WINDOWS = 3
"""Windows of a recording that are compared with the same in one piece."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SSLKMeansConfig:
    """What a fitted one is, beside its weights: all that decides its units."""

    encoder: EncoderConfig
    quantizer: QuantizerKind
    window_s: float
    context_s: float

    def __post_init__(self) -> None:
        rate = SAMPLE_RATE / self.encoder.hop_length
        if self.context_s < 0 or round(self.window_s * rate) <= 2 * round(self.context_s * rate):
            raise ConfigError(
                f"window_s ({self.window_s}) must be more than twice context_s ({self.context_s}) "
                f"by a frame of {1000 / rate:g} ms"
            )


class SSLKMeans:
    """Units of 50 or 25 Hz from a self-supervised encoder; the field's usual semantic tokens."""

    sample_rate = SAMPLE_RATE
    num_codebooks = 1
    streaming: Literal["exact"] = "exact"

    def __init__(self, config: SSLKMeansConfig, tensors: Mapping[str, Tensor]) -> None:
        """Build one.

        Args:
            config: What it is.
            tensors: ``encoder.*`` and ``quantizer.*``, float32.

        Raises:
            CheckpointError: The two do not fit each other, or ``config``.
        """
        self.config = config
        self._encoder = Encoder(config.encoder, below(tensors, "encoder."))
        quantizer = aligned(below(tensors, "quantizer."))
        self._quantizer: Quantizer = QUANTIZERS[config.quantizer](quantizer)
        if self._quantizer.dim != config.encoder.dim:
            raise CheckpointError(
                f"the k-means is of {self._quantizer.dim} features, but the encoder gives "
                f"{config.encoder.dim}: they were not made for each other; give the k-means of "
                "this encoder, or none to fit one"
            )
        self.fingerprint = fingerprint(KIND, asdict(config), self._tensors())
        self.hop_length = config.encoder.hop_length
        self.frame_rate = self.sample_rate / self.hop_length
        self.vocab_size = self._quantizer.num_units
        self._window = self._samples(config.window_s)
        self._context = self._samples(config.context_s)
        self.lookahead = self._window - self.hop_length
        self.device = torch.device("cpu")

    def _samples(self, duration_s: float) -> int:
        return round(duration_s * self.frame_rate) * self.hop_length

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **{f"encoder.{name}": tensor for name, tensor in self._encoder.tensors().items()},
            **{f"quantizer.{name}": tensor for name, tensor in self._quantizer.tensors.items()},
        }

    @property
    def unit_features(self) -> Tensor:
        """What a unit sounds like, float32 [V, D]: similar units have similar rows."""
        return self._quantizer.unit_features.cpu()

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> list[Units]:
        """Tokenize a padded batch, see :class:`speechlm.protocols.AudioTokenizer`."""
        sizes = [wave.shape[1]] * wave.shape[0] if lengths is None else lengths.tolist()
        rows = [row[:size] for row, size in zip(wave, sizes, strict=True)]
        if self.device.type == "cpu":
            coded = [self._alone(row) for row in rows]
        else:
            coded = self._in_batches(rows)
        return [
            Units(codes=codes, frame_rate=self.frame_rate, fingerprint=self.fingerprint)
            for codes in coded
        ]

    def _alone(self, wave: Tensor) -> Tensor:
        stream = self.stream()
        return torch.cat([stream.push(wave), stream.finish()], dim=1)

    def _in_batches(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Units int64 [1, F] of each row, windows of like length computed together.

        Rounding differs in a batch: what could be another unit for it is computed alone.
        """
        windows = [(index, w) for index, row in enumerate(rows) for w in self._windows(row)]
        order = sorted(range(len(windows)), key=lambda n: windows[n][1].content.shape[0])
        found: dict[int, Tensor] = {}
        for start, stop in _batches([len(windows[n][1].content) for n in order]):
            numbers = order[start:stop]
            contents = [windows[n][1].content.to(self.device) for n in numbers]
            for n, features in zip(numbers, self._encoder.batch(contents), strict=True):
                features = self._kept(windows[n][1], features)
                unsure = bool(self._quantizer.unsure(features, BATCH_ERROR).any())
                found[n] = self.codes(windows[n][1]) if unsure else self._quantizer(features).cpu()
        coded = []
        for index in range(len(rows)):
            parts = [found[n] for n, (row, _) in enumerate(windows) if row == index]
            codes = torch.cat([torch.zeros(0, dtype=torch.int64), *parts])
            coded.append(fill_gaps(codes, before=0)[None])
        return coded

    def windows(self) -> Windows:
        """What cuts a recording, by samples, into windows that are all as long but the last."""
        return Windows(
            self._window - 2 * self._context,
            before=self._context,
            after=self._context,
            first=self._window - self._context,
        )

    def _windows(self, wave: Tensor) -> Iterator[Window]:
        windows = self.windows()
        yield from windows.push(wave)
        if (last := windows.finish()) is not None:
            yield last

    def features(self, wave: Tensor) -> Tensor:
        """What is clustered: float32 [T] at 16 kHz to [ceil(T / hop_length), D]."""
        parts = [self._kept(window, self._read(window)) for window in self._windows(wave)]
        return torch.cat([torch.zeros(0, self.config.encoder.dim), *(part.cpu() for part in parts)])

    def _read(self, window: Window) -> Tensor:
        features: Tensor = self._encoder(window.content.to(self.device))
        return features

    def _kept(self, window: Window, features: Tensor) -> Tensor:
        """Of the frames of a window those that it stands for."""
        first = window.skip // self.hop_length
        return features[first : -(-(window.skip + window.keep) // self.hop_length)]

    @torch.inference_mode()
    def codes(self, window: Window) -> Tensor:
        """The units that a window stands for, int64 [m]; ``NO_UNIT`` where it says nothing."""
        return self._quantizer(self._kept(window, self._read(window))).cpu()

    def stream(self) -> SSLKMeansStream:
        return SSLKMeansStream(self)

    def seams(self, wave: Tensor) -> float | None:
        """The share of units that windows leave as they are in one piece.

        Args:
            wave: float32 [T] at 16 kHz; of a long one the first windows are compared.

        Returns:
            0 to 1; None where the recording is one window anyway.
        """
        wave = wave[: SEAM_WINDOWS * self._window]
        if len(wave) < self._window + self.hop_length:
            return None
        whole = Window(content=wave, skip=0, keep=len(wave))
        return float((self._alone(wave)[0] == fill_gaps(self.codes(whole), 0)).double().mean())

    def to(self, device: torch.device | str) -> Self:
        """Compute there from now on; units still come to the CPU.

        A GPU rounds otherwise than a CPU, so a few units may differ between them.
        """
        self.device = torch.device(device)
        self._encoder.to(self.device)
        self._quantizer = self._quantizer.to(self.device)
        return self

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self._tensors())

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(SSLKMeansConfig, part.config), part.tensors)

    @classmethod
    def needs_corpus(cls, options: Mapping[str, Any]) -> bool:
        """Whether the k-means is to be fitted, not read."""
        return options.get("kmeans") is None and options.get("preset") is None

    @classmethod
    def fit(cls, waves: Iterable[Tensor], options: Mapping[str, Any], seed: int) -> Self:
        """Open an encoder and fit a k-means on what it hears, or open that too.

        Args:
            waves: Recordings, float32 [T] at 16 kHz, read once in bounded memory; where they are
                :class:`speechlm.protocols.ResumableWaves`, a killed fit goes on where it was.
            options: Fields of :class:`SSLKMeansOptions`.
            seed: Decides which frames are kept, and the first centroids.

        Raises:
            ConfigError: An option is not known or does not fit.
            CheckpointError: The encoder or the k-means is missing, partial, changed, of another
                architecture or dimension, or a pickle without ``trust``.
            CorpusError: The corpus has fewer frames than there are units to fit.
        """
        chosen = resolve(options)
        assert chosen.model is not None
        assert chosen.layer is not None
        quantizer: QuantizerKind = "k-means"
        read: dict[str, Tensor] | None = None
        if chosen.kmeans is not None:  # before the encoder: it is a thousandth of its size
            quantizer, read = read_quantizer(
                chosen.kmeans,
                trust=chosen.trust,
                sha256=chosen.kmeans_sha256,
                sha256_name="tokenizer.options.kmeans_sha256",
            )
        encoder = load_encoder(
            chosen.model,
            chosen.layer,
            revision=chosen.revision,
            normalize=chosen.normalize,
            sha256=chosen.sha256,
        )
        config = SSLKMeansConfig(
            encoder=encoder.config,
            quantizer=quantizer,
            window_s=chosen.window_s,
            context_s=chosen.context_s,
        )
        weights = {f"encoder.{name}": tensor for name, tensor in encoder.tensors().items()}
        if read is None:
            # To hear the corpus with, units of any kind will do.
            anything = torch.zeros(2, encoder.config.dim)
            listener = cls(config, {**weights, "quantizer.centroids": anything})
            read = {"centroids": listener._fit(waves, chosen, seed)}
        fitted = cls(config, {**weights, **{f"quantizer.{k}": v for k, v in read.items()}})
        if chosen.num_units not in (None, fitted.vocab_size):
            raise CheckpointError(
                f"{chosen.kmeans} holds {fitted.vocab_size} units, but tokenizer.options.num_units "
                f"says {chosen.num_units}: leave it out, or give another k-means"
            )
        return fitted

    def _fit(self, waves: Iterable[Tensor], options: SSLKMeansOptions, seed: int) -> Tensor:
        """Centroids of what it hears, float32 [V, D]."""
        device = options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.to(device)
        work: Path | None = getattr(waves, "work", None)
        if work is not None:
            # What another encoder heard is of no use.
            work = work / self.fingerprint
        store = FrameStore(options.fit_frames, self.config.encoder.dim, seed, work)
        if store.num_recordings:
            waves = waves.after(store.num_recordings)  # type: ignore[attr-defined]
        for wave in waves:
            store.add(self.features(wave))
        store.save()
        frames = store.frames()
        if len(frames) < (wanted := options.units_to_fit):
            raise CorpusError(
                f"expected a corpus of at least {wanted} frames "
                f"({wanted / self.frame_rate:.0f} s) to fit {wanted} units, got {len(frames)} "
                f"({len(frames) / self.frame_rate:.0f} s); give more speech or set "
                "tokenizer.options.num_units lower"
            )
        return fit_resumable(frames.to(device), wanted, options.iterations, seed, work)


class SSLKMeansStream:
    """One live recording; see :class:`speechlm.protocols.TokenizerStream`."""

    def __init__(self, tokenizer: SSLKMeans) -> None:
        self._tokenizer = tokenizer
        self._windows = tokenizer.windows()
        self._last = 0
        """The unit of the frame before the next, for frames that say nothing."""

    def push(self, samples: Tensor) -> Tensor:
        """Take float32 [n] at 16 kHz; give the units now certain, int64 [1, m]."""
        return self._code(self._windows.push(samples))

    def finish(self) -> Tensor:
        """Give the units still held back, int64 [1, m]."""
        last = self._windows.finish()
        return self._code(iter(() if last is None else (last,)))

    def _code(self, windows: Iterator[Window]) -> Tensor:
        parts = [self._tokenizer.codes(window) for window in windows]
        codes = fill_gaps(torch.cat([torch.zeros(0, dtype=torch.int64), *parts]), self._last)
        if len(codes):
            self._last = int(codes[-1])
        return codes[None]


def _batches(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut ascending sizes into stretches ``start, stop`` of at most ``BATCH_S`` with padding."""
    start = 0
    for stop in range(1, len(sizes) + 1):
        if stop == len(sizes) or (stop + 1 - start) * sizes[stop] > BATCH_S * SAMPLE_RATE:
            yield start, stop
            start = stop
