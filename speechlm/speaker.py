"""Who speaks: an embedding of a reference recording, for vocoders that take a voice.

The default extractor's weights come inside a package, ``resemblyzer``; nothing of the package is
imported, so what it asks for itself need not be there: ``pip install --no-deps resemblyzer``.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.audio import prepare
from speechlm.errors import CheckpointError, PluginError

SAMPLE_RATE = 16_000
EMBEDDING_DIM = 256
"""Features of an embedding."""
PACKAGE, WEIGHTS = "resemblyzer", "pretrained.pt"

_HOP, _WINDOW, _MELS = 160, 400, 40
_PARTIAL = 160
"""Frames of 10 ms that are embedded at once, 1.6 s; a recording's embedding is their mean."""
_STEP = 77
"""Frames between two of them."""
_COVERAGE = 0.75
"""The last one is left out if less of it than this is filled."""
_LOUDNESS = 10 ** (-20 / 20)
"""What is not a pause is brought to this, root mean square of full scale."""
_PAUSE_BELOW = 1e-4
"""Frames whose power is below this share of the loudest's are pauses,"""
_LONGEST_PAUSE = 20
"""and are cut to so many."""


class SpeakerEncoder(nn.Module):
    """Voice to a unit vector; the same voice gives near vectors (GE2E).

    Source:
        Wan et al. 2018, generalized end-to-end loss for speaker verification, arXiv:1710.10467;
        the weights are those of Resemblyzer (Apache-2.0). Here all recordings are brought to
        one loudness, and pauses are found by it, not by a voice activity detector.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_MELS, EMBEDDING_DIM, 3, batch_first=True)
        self.linear = nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a checkpoint in Resemblyzer's format.

        Raises:
            CheckpointError: Missing, truncated, or of another model.
        """
        encoder = cls()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
            wanted = {name: state[name] for name in encoder.state_dict()}
            encoder.load_state_dict(wanted)
        except Exception as error:  # whatever unpickling and torch make of a broken file
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path}: expected the weights of Resemblyzer's voice encoder, got a file that "
                f"cannot be read as such ({type(error).__name__}: {reason})"
            ) from error
        return encoder.eval().requires_grad_(False)

    @torch.inference_mode()
    def embed(self, wave: Tensor, sample_rate: int) -> Tensor:
        """Embed a reference recording of one voice; a few seconds are enough.

        Args:
            wave: float [T] or [channels, T].
            sample_rate: Its rate, Hz.

        Returns:
            float32 [256] of length 1.

        Raises:
            AudioError: Too short, silent, or NaN.
        """
        mels = self._mels(prepare(wave, sample_rate, SAMPLE_RATE, name="the reference"))
        starts = [0]
        while starts[-1] + _STEP + _COVERAGE * _PARTIAL <= len(mels):
            starts.append(starts[-1] + _STEP)
        mels = F.pad(mels, (0, 0, 0, max(0, starts[-1] + _PARTIAL - len(mels))))
        partials = torch.stack([mels[start : start + _PARTIAL] for start in starts])
        _, (hidden, _) = self.lstm(partials)
        embeddings = F.normalize(F.relu(self.linear(hidden[-1])), dim=1)
        return F.normalize(embeddings.mean(dim=0), dim=0)

    def _mels(self, wave: Tensor) -> Tensor:
        """Mel power spectra of what is not a long pause, float32 [frames, 40]."""
        frames = F.pad(wave, (_WINDOW // 2, _WINDOW // 2)).unfold(0, _WINDOW, _HOP)
        power = frames.square().mean(dim=1)
        loud = power > _PAUSE_BELOW * power.max()
        gain = _LOUDNESS / power[loud].mean().sqrt()
        spectra = torch.fft.rfft(gain * frames * torch.hann_window(_WINDOW))
        mels = spectra.abs().square() @ _filters()
        # Frames since the last loud one.
        places = torch.arange(len(mels))
        last = torch.where(loud, places, -_LONGEST_PAUSE - 1).cummax(dim=0).values
        spoken: Tensor = mels[places - last <= _LONGEST_PAUSE]
        return spoken


@lru_cache(1)
def _filters() -> Tensor:
    import torchaudio.functional

    filters: Tensor = torchaudio.functional.melscale_fbanks(
        _WINDOW // 2 + 1, 0.0, 8000.0, _MELS, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return filters


@lru_cache(1)
def default_speaker_encoder() -> SpeakerEncoder:
    """The extractor that is there without any download.

    Raises:
        PluginError: The package that carries its weights is not installed.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == WEIGHTS:
            return SpeakerEncoder.from_file(Path(str(file.locate())))
    raise PluginError(
        f"a voice needs the package {PACKAGE!r}, which carries the weights of the speaker "
        f"encoder: pip install --no-deps {PACKAGE}"
    )
