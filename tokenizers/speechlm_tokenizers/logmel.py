"""Log-mel cepstra of speech, freed of loudness and channel as they come: causal, float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchaudio.functional
from torch import Tensor

SAMPLE_RATE = 16_000
MEL_HOP = 160
"""Samples between two log-mel spectra."""
WINDOW = 400
"""Samples a spectrum sees."""
FFT_SIZE = 512
STACK = 2
"""Spectra a frame."""
LOOKAHEAD = (WINDOW - MEL_HOP) // 2
"""Samples on either side of a hop that its spectrum sees."""


@dataclass(frozen=True, slots=True)
class NormalisationState:
    """What a recording has shown so far of its voice and channel."""

    total: Tensor
    """Sum of speech cepstra, the prior's included, float64 [num_cepstra]."""
    count: Tensor
    """Frames in ``total``, float64 []."""
    peak: Tensor
    """Loudest energy so far, float64 []."""


class Frontend:
    """Waveform to normalised cepstra; stateless, float64."""

    SPEECH_RANGE = 3.5
    """Frames within this of the peak, in nepers of amplitude (30 dB), count as speech."""
    START_BELOW_PEAK = 2.0
    """How far below the corpus' mean peak a recording's peak starts, nepers."""
    FLOOR = 1e-4
    """Added to mel magnitudes before the logarithm; about a 16-bit file's own noise."""

    def __init__(self, num_mels: int, num_cepstra: int, normalisation_s: float) -> None:
        self._num_mels = num_mels
        self._normalisation_s = normalisation_s
        bins = FFT_SIZE // 2 + 1
        filters: Tensor = torchaudio.functional.melscale_fbanks(
            bins, 40.0, 7800.0, num_mels, SAMPLE_RATE, norm=None
        )
        self.filters = filters.double()
        self._window = torch.hann_window(WINDOW, dtype=torch.float64)
        dct: Tensor = torchaudio.functional.create_dct(num_cepstra, num_mels, "ortho")
        self._dct = dct.double()

    def log_mels_of_whole(self, wave: Tensor) -> Tensor:
        """Log-mels of a whole recording, padded as a stream pads it, float64 [2F, num_mels]."""
        lookahead = LOOKAHEAD
        padding = -wave.shape[0] % (STACK * MEL_HOP) + lookahead
        return self.log_mels(F.pad(wave.double(), (lookahead, padding)))[0]

    def log_mels(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Every whole window's log-mel spectrum, float64 [n, num_mels], and the samples left."""
        count = (len(samples) - WINDOW) // MEL_HOP + 1
        if count < 1:
            return torch.zeros(0, self._num_mels, dtype=torch.float64), samples
        frames = samples.unfold(0, WINDOW, MEL_HOP)
        spectra = torch.fft.rfft(frames * self._window, n=FFT_SIZE).abs()
        mels = torch.log(spectra @ self.filters + self.FLOOR)
        return mels, samples[count * MEL_HOP :]

    def cepstra(self, mels: Tensor) -> Tensor:
        """float64 [n, num_mels] to [n, num_cepstra]."""
        return mels @ self._dct

    def energy(self, mels: Tensor) -> Tensor:
        """Mean log magnitude over frequency, float64 [n]."""
        return mels.mean(dim=1)

    def initial_state(self, prior: Mapping[str, Tensor]) -> NormalisationState:
        count = self._normalisation_s * SAMPLE_RATE / MEL_HOP
        return NormalisationState(
            total=prior["mean"] * count,
            count=torch.tensor(count, dtype=torch.float64),
            peak=prior["peak"] - self.START_BELOW_PEAK,
        )

    def normalise(
        self, cepstra: Tensor, energy: Tensor, state: NormalisationState
    ) -> tuple[Tensor, NormalisationState]:
        """Subtract the causal speech mean and stack spectra into frames.

        Args:
            cepstra: float64 [stack * F, num_cepstra].
            energy: float64 [stack * F].
            state: What came before.

        Returns:
            float64 [F, stack * num_cepstra] and the state after them.
        """
        peak = torch.cat([state.peak[None], energy]).cummax(dim=0).values[1:]
        speech = (energy > peak - self.SPEECH_RANGE).double()
        # The carried sum goes through the same running addition as the frames, so that the
        # result does not depend on where a recording was cut.
        totals = torch.cat([state.total[None], cepstra * speech[:, None]]).cumsum(dim=0)[1:]
        counts = torch.cat([state.count[None], speech]).cumsum(dim=0)[1:]
        after = NormalisationState(total=totals[-1], count=counts[-1], peak=peak[-1])
        return stack_frames(cepstra - totals / counts[:, None], STACK), after


def stack_frames(frames: Tensor, stack: int) -> Tensor:
    return frames.reshape(len(frames) // stack, stack * frames.shape[1])
