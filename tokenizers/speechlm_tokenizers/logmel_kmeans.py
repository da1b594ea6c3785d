"""``logmel-kmeans``: log-mel frames, normalised as they come, assigned to k-means centroids.

Needs no weights and fits in seconds on any corpus. What makes it work across voices:

* Each 20 ms frame is two 10 ms log-mel spectra, of which only the first cepstra are compared:
  the envelope says which sound it is, the fine structure above it only says whose pitch.
* Loudness and channel are taken out by the mean over the speech heard *so far*, which starts
  from the corpus' own mean: causal, so a stream gives exactly what the whole recording gives.
* Everything runs in float64, so that how a recording is cut, or what shares its batch, cannot
  tip a frame from one centroid to another through rounding.

Beside its centroids a fitted tokenizer keeps what a training-free vocoder needs: the mean
log-mel of each unit, and the least-squares map from neighbouring units to a frame's log-mel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from speechlm.config import build
from speechlm.errors import ConfigError, CorpusError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.units import Units
from speechlm_tokenizers import logmel
from speechlm_tokenizers.kmeans import assign, fit_kmeans
from speechlm_tokenizers.logmel import Frontend, NormalisationState, stack_frames

KIND = "logmel-kmeans"
BLOCK_SAMPLES = 60 * 16_000
"""What ``encode`` hands to a stream at once: bounds the memory that a long recording takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogMelKMeansConfig:
    """The tokenizer's options, ``tokenizer.options`` of a run."""

    num_units: int = 1000
    """Centroids."""
    num_mels: int = 80
    num_cepstra: int = 13
    """Coefficients of each 10 ms spectrum that are compared, of ``num_mels``."""
    whitening: float = 0.7
    """0 compares cepstra as they are, 1 divides each by its standard deviation: what sounds
    differ in is then not drowned by loudness and tilt, which vary most."""
    normalisation_s: float = 0.4
    """Seconds of speech that the corpus' mean counts for against the voice heard so far."""
    context: int = 2
    """Neighbouring units on each side that the least-squares map to log-mels sees."""
    fit_frames: int = 300_000
    """Most frames kept in memory to fit on; recordings beyond them are sampled."""
    iterations: int = 10
    """Passes of k-means over the kept frames."""

    def __post_init__(self) -> None:
        if self.num_units < 2:
            raise ConfigError(f"num_units must be at least 2, got {self.num_units}")
        if not 1 <= self.num_cepstra <= self.num_mels:
            raise ConfigError(
                f"num_cepstra must be within 1..num_mels ({self.num_mels}), got {self.num_cepstra}"
            )


class LogMelKMeans:
    """Log-mel frames at 50 Hz by k-means; fits on any corpus in seconds, streams exactly."""

    sample_rate = logmel.SAMPLE_RATE
    mel_hop = logmel.MEL_HOP
    window = logmel.WINDOW
    fft_size = logmel.FFT_SIZE
    stack = logmel.STACK
    hop_length = stack * mel_hop
    frame_rate = sample_rate / hop_length
    num_codebooks = 1
    lookahead = logmel.LOOKAHEAD
    streaming: Literal["exact"] = "exact"
    default_vocoder = "centroid-mel"

    def __init__(self, config: LogMelKMeansConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self._tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self.fingerprint = fingerprint(KIND, asdict(config), self._tensors)
        self.vocab_size = config.num_units
        self._frontend = Frontend(config.num_mels, config.num_cepstra, config.normalisation_s)
        self._centroids = self._tensors["centroids"].double()

    @property
    def unit_features(self) -> Tensor:
        """What a unit sounds like, float32 [V, D]: similar units have similar rows."""
        return self._tensors["centroids"]

    @property
    def unit_mels(self) -> Tensor:
        """Mean log-mel spectra of each unit, float32 [V, stack * num_mels]."""
        return self._tensors["unit_mels"]

    @property
    def context_map(self) -> Tensor:
        """Least-squares map [(2 * context + 1) * stack * num_mels + 1, stack * num_mels].

        From the ``unit_mels`` of a frame's neighbourhood, and 1, to the frame's log-mels.
        """
        return self._tensors["context_map"]

    @property
    def mel_filters(self) -> Tensor:
        """Triangular filters over the magnitude spectrum, float64 [fft_size // 2 + 1, num_mels]."""
        return self._frontend.filters

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
        parts = [stream.push(block) for block in torch.split(wave, BLOCK_SAMPLES)]
        return torch.cat([*parts, stream.finish()], dim=1)

    def stream(self) -> LogMelKMeansStream:
        return LogMelKMeansStream(self)

    def quantize(self, features: Tensor) -> Tensor:
        """Nearest centroid of each frame, float64 [F, D] to int64 [F]."""
        return assign(features * self._tensors["scale"], self._centroids)

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self._tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(LogMelKMeansConfig, part.config), part.tensors)

    @classmethod
    def fit(cls, waves: Iterable[Tensor], options: Mapping[str, Any], seed: int) -> Self:
        """Fit centroids and the map to log-mels.

        Args:
            waves: Recordings, float32 [T] at 16 kHz; read once, in bounded memory.
            options: Fields of :class:`LogMelKMeansConfig`.
            seed: Decides the sample and the first centroids.

        Raises:
            ConfigError: An option is not known or does not fit.
            CorpusError: The corpus has fewer frames than there are units to fit.
        """
        config = build(LogMelKMeansConfig, options, "tokenizer.options")
        frontend = Frontend(config.num_mels, config.num_cepstra, config.normalisation_s)
        generator = torch.Generator().manual_seed(seed)
        sample = _sample_recordings(
            (frontend.log_mels_of_whole(wave) for wave in waves), config.fit_frames, generator
        )
        cepstra = [frontend.cepstra(mels) for mels in sample]
        energies = [frontend.energy(mels) for mels in sample]
        frames = sum(len(mels) for mels in sample) // cls.stack
        if frames < config.num_units:
            raise CorpusError(
                f"expected a corpus of at least {config.num_units} frames "
                f"({config.num_units / cls.frame_rate:.0f} s) to fit {config.num_units} units, got "
                f"{frames} ({frames / cls.frame_rate:.0f} s); give more speech or set "
                "tokenizer.options.num_units lower"
            )
        peak = torch.stack([energy.max() for energy in energies]).mean()
        prior = {"peak": peak, "mean": _speech_mean(cepstra, energies, peak)}
        features = []
        for part, energy in zip(cepstra, energies, strict=True):
            normalised, _ = frontend.normalise(part, energy, frontend.initial_state(prior))
            features.append(normalised)
        scale = torch.cat(features).std(dim=0) ** -config.whitening
        features = [part * scale for part in features]
        centroids = fit_kmeans(
            torch.cat(features).float(), config.num_units, config.iterations, generator
        )
        codes = [assign(part, centroids.double()) for part in features]
        stacked = [stack_frames(mels, cls.stack) for mels in sample]
        unit_mels = _means(torch.cat(stacked), torch.cat(codes), config.num_units)
        context_map = _fit_context_map(stacked, codes, unit_mels, config.context)
        tensors = {
            "centroids": centroids,
            "scale": scale,
            "unit_mels": unit_mels.float(),
            "context_map": context_map.float(),
            "prior_mean": prior["mean"],
            "prior_peak": prior["peak"].reshape(1),
        }
        return cls(config, tensors)

    def initial_state(self) -> NormalisationState:
        """The state that a recording's normalisation starts from."""
        prior = {"mean": self._tensors["prior_mean"], "peak": self._tensors["prior_peak"][0]}
        return self._frontend.initial_state(prior)


class LogMelKMeansStream:
    """One live recording; see :class:`speechlm.protocols.TokenizerStream`."""

    def __init__(self, tokenizer: LogMelKMeans) -> None:
        self._tokenizer = tokenizer
        self._frontend = tokenizer._frontend
        self._state = tokenizer.initial_state()
        self._samples = torch.zeros(tokenizer.lookahead, dtype=torch.float64)
        self._mels = torch.zeros(0, tokenizer.config.num_mels, dtype=torch.float64)
        self._num_samples = 0

    def push(self, samples: Tensor) -> Tensor:
        """Take float32 [n] at 16 kHz; give the units now certain, int64 [1, m]."""
        self._num_samples += samples.shape[0]
        self._samples = torch.cat([self._samples, samples.double()])
        mels, self._samples = self._frontend.log_mels(self._samples)
        mels = torch.cat([self._mels, mels])
        whole = len(mels) - len(mels) % self._tokenizer.stack
        self._mels = mels[whole:]
        return self._quantize(mels[:whole])

    def finish(self) -> Tensor:
        """Give the units still held back, int64 [1, m]; the end is padded with silence."""
        hop = self._tokenizer.hop_length
        padding = -self._num_samples % hop + self._tokenizer.lookahead
        frames = -(-self._num_samples // hop)
        codes = self.push(torch.zeros(padding))
        self._num_samples = frames * hop
        return codes

    def _quantize(self, mels: Tensor) -> Tensor:
        if len(mels) == 0:
            return torch.zeros(1, 0, dtype=torch.int64)
        features, self._state = self._frontend.normalise(
            self._frontend.cepstra(mels), self._frontend.energy(mels), self._state
        )
        return self._tokenizer.quantize(features)[None]


def _speech_mean(cepstra: list[Tensor], energies: list[Tensor], peak: Tensor) -> Tensor:
    speech = torch.cat(energies) > peak - Frontend.SPEECH_RANGE
    return torch.cat(cepstra)[speech].mean(dim=0)


def _sample_recordings(
    recordings: Iterable[Tensor], max_frames: int, generator: torch.Generator
) -> list[Tensor]:
    """Keep a uniform sample of recordings that holds at most about ``max_frames`` units.

    Every recording draws a number; those with the lowest stay. One pass, bounded memory.
    """
    kept: list[tuple[float, Tensor]] = []
    held = 0
    for mels in recordings:
        kept.append((float(torch.rand((), generator=generator)), mels.float()))
        held += len(mels)
        if held > 1.25 * LogMelKMeans.stack * max_frames:
            held = _drop_highest(kept, LogMelKMeans.stack * max_frames)
    if held > LogMelKMeans.stack * max_frames:
        _drop_highest(kept, LogMelKMeans.stack * max_frames)
    return [mels.double() for _, mels in kept]


def _drop_highest(kept: list[tuple[float, Tensor]], max_spectra: int) -> int:
    kept.sort(key=lambda item: item[0])
    held = 0
    for index, (_, mels) in enumerate(kept):
        if held + len(mels) > max_spectra and index > 0:
            del kept[index:]
            return held
        held += len(mels)
    return held


def _means(rows: Tensor, codes: Tensor, num_units: int) -> Tensor:
    """Mean row of each unit, float64 [V, D]; a unit that never came takes the overall mean."""
    sums = torch.zeros(num_units, rows.shape[1], dtype=rows.dtype).index_add_(0, codes, rows)
    counts = torch.bincount(codes, minlength=num_units)[:, None]
    return torch.where(counts > 0, sums / counts.clamp(min=1), rows.mean(dim=0))


def neighbourhood(unit_mels: Tensor, codes: Tensor, context: int) -> Tensor:
    """The log-mels of each frame's neighbouring units, and 1.

    Args:
        unit_mels: float [V, D].
        codes: int64 [F]; beyond the ends the first and last unit go on.
        context: Units seen on each side.

    Returns:
        float [F, (2 * context + 1) * D + 1].
    """
    rows = unit_mels[codes]
    padded = torch.cat([rows[:1].expand(context, -1), rows, rows[-1:].expand(context, -1)])
    around = padded.unfold(0, 2 * context + 1, 1).transpose(1, 2).flatten(1)
    return torch.cat([around, around.new_ones(len(around), 1)], dim=1)


def _fit_context_map(
    targets: list[Tensor], codes: list[Tensor], unit_mels: Tensor, context: int
) -> Tensor:
    """Ridge regression from neighbouring units to log-mels, by normal equations."""
    width = (2 * context + 1) * unit_mels.shape[1] + 1
    gram = torch.zeros(width, width, dtype=torch.float64)
    cross = torch.zeros(width, unit_mels.shape[1], dtype=torch.float64)
    for target, code in zip(targets, codes, strict=True):
        if len(code):
            rows = neighbourhood(unit_mels, code, context)
            gram += rows.T @ rows
            cross += rows.T @ target
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    solution: Tensor = torch.linalg.solve(gram + ridge, cross)
    return solution
