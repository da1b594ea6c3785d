"""Recordings to units and back, without a language model: what of them the units keep."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from torch import Tensor

from speechlm.audio import prepare
from speechlm.errors import FingerprintError, PluginError
from speechlm.parts import CONFIG_NAME
from speechlm.plugins import AUTO, load_tokenizer, load_vocoder
from speechlm.protocols import AudioTokenizer, Speaker, Vocoder
from speechlm.speaker import EMBEDDING_DIM, default_speaker_encoder
from speechlm.units import Units


class Resynthesizer:
    """A tokenizer and a vocoder that were made for each other.

    Raises:
        FingerprintError: The vocoder was made for another tokenizer.
    """

    def __init__(self, tokenizer: AudioTokenizer, vocoder: Vocoder) -> None:
        if vocoder.tokenizer_fingerprint != tokenizer.fingerprint:
            raise FingerprintError(
                part="the vocoder",
                expected=vocoder.tokenizer_fingerprint,
                got=tokenizer.fingerprint,
                remedy="give the vocoder of this tokenizer, or train one on its units",
            )
        self.tokenizer = tokenizer
        self.vocoder = vocoder
        self.speaker: Speaker | None = None
        """The voice to speak in, for vocoders that take one; None for the recording's own when
        one is resynthesized, else for the vocoder's."""

    @classmethod
    def open(cls, folder: str | Path, vocoder: str | Path | None = None) -> Self:
        """Find the two parts.

        Args:
            folder: A bundle, the folder of a run, or a tokenizer's.
            vocoder: A vocoder's folder or name; by default the one beside the tokenizer, else
                the one that the tokenizer names.

        Raises:
            PluginError: No vocoder is there, and none renders these units without training.
            CheckpointError: A part is missing, partial, or changed since it was saved.
        """
        folder = Path(folder)
        bundle = folder / "bundle"
        if not (folder / "tokenizer").is_dir() and (bundle / "tokenizer").is_dir():
            folder = bundle
        tokenizer = load_tokenizer(folder if folder.exists() else str(folder))
        if vocoder is not None:
            return cls(tokenizer, load_vocoder(vocoder, tokenizer))
        for beside in (folder, bundle):
            if (beside / "vocoder" / CONFIG_NAME).is_file():
                return cls(tokenizer, load_vocoder(beside / "vocoder"))
        try:
            return cls(tokenizer, load_vocoder(AUTO, tokenizer))
        except PluginError as error:
            raise PluginError(f"{folder} holds no vocoder, and {error}") from error

    @property
    def sample_rate(self) -> int:
        """Rate of the waveforms it gives, Hz."""
        return self.vocoder.sample_rate

    def encode(self, wave: Tensor, sample_rate: int) -> Units:
        """Tokenize one recording, float [T] or [channels, T] at any rate.

        Raises:
            AudioError: Too short, silent, NaN, or of another shape.
        """
        ready = prepare(wave, sample_rate, self.tokenizer.sample_rate)
        return self.tokenizer.encode(ready[None])[0]

    def resynthesize(self, wave: Tensor, sample_rate: int) -> Tensor:
        """Pass a recording through tokenizer and vocoder.

        Returns:
            float32 [T'] at :attr:`sample_rate`, as long as the recording up to one frame.
        """
        units = self.encode(wave, sample_rate)
        return self.vocoder.decode([units], speaker=self.voice_of(wave, sample_rate))[0]

    def voice_of(self, wave: Tensor, sample_rate: int) -> Speaker | None:
        """The voice to resynthesize a recording in: its own, where none is set."""
        if self.speaker is not None:
            return self.speaker
        if getattr(self.vocoder, "speaker_dim", 0) != EMBEDDING_DIM:
            return None
        return default_speaker_encoder().embed(wave, sample_rate)
