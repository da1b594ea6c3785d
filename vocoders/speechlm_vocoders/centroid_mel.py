"""``centroid-mel``: units to sound with no training at all, exactly streamed.

1. Units become log-mel spectra by the least-squares map of their neighbourhood, which the
   tokenizer fitted beside its centroids: neighbours sharpen what one centroid blurs.
2. Mel spectra become magnitudes by the pseudo-inverse of the mel filters.
3. Phases come from Griffin-Lim run in real time: a window of frames slides over the utterance;
   in each position some iterations make it consistent with what has already been played, and
   its first unit is then played. A recording cut in any way gives the same samples, because
   there is no other way in which the whole is rendered.

Source:
    Griffin and Lim 1984; Zhu, Beauregard and Wyse 2007 (real-time iterative spectrogram
    inversion with look-ahead).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.config import build
from speechlm.errors import FingerprintError, InputError, PluginError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.protocols import AudioTokenizer, Speaker
from speechlm.units import Units
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans

KIND = "centroid-mel"


@dataclass(frozen=True, kw_only=True, slots=True)
class CentroidMelConfig:
    """What a ``centroid-mel`` was built for, and how it finds phases."""

    tokenizer_fingerprint: str
    iterations: int = 12
    """Rounds of Griffin-Lim a unit."""
    lookahead: int = 2
    """Units beyond the present one that the iterations see."""
    context: int = 2
    """Neighbouring units on each side that shape a unit's spectra."""


class CentroidMel:
    """Renders logmel-kmeans units by their mean spectra and streaming Griffin-Lim."""

    sample_rate = LogMelKMeans.sample_rate
    hop_length = LogMelKMeans.hop_length
    streaming: Literal["exact"] = "exact"

    def __init__(self, config: CentroidMelConfig, tensors: dict[str, Tensor]) -> None:
        self.config = config
        self._tensors = tensors
        self.fingerprint = fingerprint(KIND, asdict(config), tensors)
        self.tokenizer_fingerprint = config.tokenizer_fingerprint
        self.num_units = tensors["unit_mels"].shape[0]
        self.lookahead = config.lookahead + config.context
        self._unit_mels = tensors["unit_mels"].double()
        self._context_map = tensors["context_map"].double()
        self._mel_inverse = tensors["mel_inverse"].double()

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer) -> Self:
        """Build one from what the tokenizer kept when it was fitted."""
        if not isinstance(tokenizer, LogMelKMeans):
            raise PluginError(
                f"vocoder {KIND!r} renders units of 'logmel-kmeans', "
                f"got {tokenizer.fingerprint!r}; choose another vocoder: 'speechlm list' shows them"
            )
        config = CentroidMelConfig(
            tokenizer_fingerprint=tokenizer.fingerprint, context=tokenizer.config.context
        )
        tensors = {
            "unit_mels": tokenizer.unit_mels,
            "context_map": tokenizer.context_map,
            "mel_inverse": torch.linalg.pinv(tokenizer.mel_filters).float(),
        }
        return cls(config, tensors)

    def decode(
        self, units: Sequence[Units], speaker: Speaker | None = None, style: str | None = None
    ) -> list[Tensor]:
        """Render a batch of any mix of lengths, see :class:`speechlm.protocols.Vocoder`.

        ``speaker`` and ``style`` must be None: the voice is the one the units were fitted on.
        """
        for item in units:
            if item.fingerprint != self.tokenizer_fingerprint:
                raise FingerprintError(
                    part="this vocoder",
                    expected=self.tokenizer_fingerprint,
                    got=item.fingerprint,
                    remedy="tokenize with the tokenizer of the same bundle",
                )
        waves = []
        for item in units:
            stream = self.stream(speaker, style)
            waves.append(torch.cat([stream.push(item.expand().codes), stream.finish()]))
        return waves

    def stream(self, speaker: Speaker | None = None, style: str | None = None) -> CentroidMelStream:
        if speaker is not None or style is not None:
            raise InputError(f"vocoder {KIND!r} has one voice; expected no speaker and no style")
        return CentroidMelStream(self)

    def magnitudes(self, neighbours: Tensor) -> Tensor:
        """Spectra of one unit.

        Args:
            neighbours: The unit amid its neighbourhood, int64 [2 * context + 1].

        Returns:
            float64 [stack, fft_size // 2 + 1].
        """
        rows = torch.cat([self._unit_mels[neighbours].flatten(), self._unit_mels.new_ones(1)])
        mels = (rows @ self._context_map).reshape(LogMelKMeans.stack, -1)
        magnitudes = (mels.exp() @ self._mel_inverse).clamp(min=1e-6)
        # Phase retrieval is chaotic: a last bit of a matrix product, which hangs on how memory
        # is laid out, would grow into other samples. A single-precision grid takes it away.
        return magnitudes.float().double()

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, asdict(self.config), self._tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(build(CentroidMelConfig, part.config), part.tensors)


class CentroidMelStream:
    """One live utterance; see :class:`speechlm.protocols.VocoderStream`."""

    def __init__(self, vocoder: CentroidMel) -> None:
        self._vocoder = vocoder
        self._phases = _PhaseWindow(vocoder.config.iterations, vocoder.config.lookahead)
        self._codes: list[int] = []
        """The units that can still be somebody's neighbour."""
        self._magnitudes: list[Tensor] = []
        self._skip = LogMelKMeans.lookahead
        """Samples before the recording's start that the first window covers."""
        self._owed = 0

    def push(self, codes: Tensor) -> Tensor:
        """Take units int64 [1, m]; give the samples now certain, float32 [n]."""
        if codes.ndim != 2 or codes.shape[0] != 1:
            raise InputError(f"expected units [1, m] of one codebook, got {list(codes.shape)}")
        if (
            codes.numel()
            and not 0 <= int(codes.min()) <= int(codes.max()) < self._vocoder.num_units
        ):
            raise InputError(
                f"expected units within 0..{self._vocoder.num_units - 1}, "
                f"got {int(codes.min())}..{int(codes.max())}"
            )
        self._owed += codes.shape[1] * self._vocoder.hop_length
        return self._take([part for code in codes[0].tolist() for part in self._add(code)])

    def finish(self) -> Tensor:
        """Give the samples still held back, float32 [n], so that all units have theirs."""
        if not self._codes:
            return torch.zeros(0)
        parts = []
        last = self._codes[-1]
        for _ in range(self._vocoder.config.context):
            parts += self._add(last)
        silence = torch.full_like(self._magnitudes[-1], 1e-6)
        # One window more than the lookahead: the first window began before the first sample.
        for _ in range(self._vocoder.config.lookahead + 1):
            parts += self._render(silence)
        return self._take(parts)

    def _add(self, code: int) -> list[Tensor]:
        context = self._vocoder.config.context
        if not self._codes:
            self._codes = [code] * context
        self._codes.append(code)
        if len(self._codes) < 2 * context + 1:
            return []
        magnitudes = self._vocoder.magnitudes(torch.tensor(self._codes))
        del self._codes[0]
        return self._render(magnitudes)

    def _render(self, magnitudes: Tensor) -> list[Tensor]:
        self._magnitudes.append(magnitudes)
        if len(self._magnitudes) <= self._vocoder.config.lookahead:
            return []
        wave = self._phases.advance(torch.cat(self._magnitudes))
        del self._magnitudes[0]
        return [wave]

    def _take(self, parts: list[Tensor]) -> Tensor:
        wave = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
        skipped = min(self._skip, len(wave))
        self._skip -= skipped
        wave = wave[skipped : skipped + self._owed]
        self._owed -= len(wave)
        return wave.float().clamp(-1.0, 1.0)


class _PhaseWindow:
    """Griffin-Lim over a sliding window of frames; what has been played is held fixed."""

    def __init__(self, iterations: int, lookahead: int) -> None:
        self._iterations = iterations
        self._hop, self._width = LogMelKMeans.mel_hop, LogMelKMeans.window
        self._stack = LogMelKMeans.stack
        frames = self._stack * (1 + lookahead)
        span = (frames - 1) * self._hop + self._width
        self._window = torch.hann_window(self._width, dtype=torch.float64)
        # Overlapping squared windows add up to this; it repeats with every hop.
        weight = F.pad(self._window.square(), (0, -self._width % self._hop))
        per_hop = weight.reshape(-1, self._hop).sum(dim=0)
        self._scale = (1 / per_hop).repeat(-(-span // self._hop))[:span]
        self._played = torch.zeros(span, dtype=torch.float64)
        self._frames = torch.zeros(frames, self._width, dtype=torch.float64)
        """Present guess of each frame's windowed samples."""
        generator = torch.Generator().manual_seed(0)
        turns = torch.rand(frames, LogMelKMeans.fft_size // 2 + 1, generator=generator)
        self._first_phases: Tensor | None = torch.exp(2j * torch.pi * turns.double())

    def advance(self, magnitudes: Tensor) -> Tensor:
        """Settle the window's first unit and move on.

        Args:
            magnitudes: Of every frame in the window, float64 [stack * (1 + lookahead), bins].

        Returns:
            The settled samples, float64 [stack * mel_hop].
        """
        for _ in range(self._iterations):
            if self._first_phases is not None:
                phases, self._first_phases = self._first_phases, None
            else:
                wave = self._played + self._overlap_add(self._frames)
                spectra = torch.fft.rfft(
                    wave.unfold(0, self._width, self._hop) * self._window, n=LogMelKMeans.fft_size
                )
                phases = spectra / (spectra.abs() + 1e-9)
            waves = torch.fft.irfft(magnitudes * phases, n=LogMelKMeans.fft_size)
            self._frames = waves[:, : self._width] * self._window
        settled = self._frames.clone()
        settled[self._stack :] = 0
        wave = self._played + self._overlap_add(settled)
        step = self._stack * self._hop
        self._played = F.pad(wave[step:], (0, step))
        self._frames = F.pad(self._frames[self._stack :], (0, 0, 0, self._stack))
        return wave[:step]

    def _overlap_add(self, frames: Tensor) -> Tensor:
        span = len(self._scale)
        added = F.fold(frames.T[None], (1, span), (1, self._width), stride=(1, self._hop))
        return added[0, 0, 0] * self._scale
