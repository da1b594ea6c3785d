"""``unit-bpe``: tokens of merged units back to the units, and those to sound by their vocoder.

Whatever renders the units of the tokenizer inside renders its merges: this one only undoes
them, and so streams as exactly as the vocoder that it holds. Where the tokenizer merged repeats
too (``collapse``), a token lasts as long as its duration says; from an LM, which gives none, each
unit lasts as long as it does on average in that token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from speechlm.config import build
from speechlm.errors import FingerprintError, InputError, PluginError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.plugins import VOCODERS
from speechlm.protocols import AudioTokenizer, Speaker, Vocoder
from speechlm.units import Units
from speechlm_tokenizers.merges import TokenTable
from speechlm_tokenizers.unit_bpe import UnitBPE
from speechlm_tokenizers.wrapping import base_vocoder, pack, unpack, wrapped_vocoder

KIND = "unit-bpe"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitBPEVocoderConfig:
    """What a ``unit-bpe`` was built for."""

    tokenizer_fingerprint: str
    """The tokenizer whose merges it undoes."""


class UnitBPEVocoder:
    """Undoes the merges of ``unit-bpe`` and has another vocoder render the units.

    Args:
        config: Whose merges.
        base: What renders the units.
        tensors: ``units`` int64 [P], ``sizes`` int64 [V] and, where repeats were merged,
            ``run_lengths`` float32 [P]; see :class:`~speechlm_tokenizers.merges.TokenTable`.
        known_as: Its fingerprint, where that is known.
    """

    def __init__(
        self,
        config: UnitBPEVocoderConfig,
        base: Vocoder,
        tensors: Mapping[str, Tensor],
        known_as: str | None = None,
    ) -> None:
        self.config = config
        self.base = base
        self._tensors = dict(tensors)
        self.fingerprint = known_as or fingerprint(KIND, *pack(base, asdict(config), tensors))
        self.tokenizer_fingerprint = config.tokenizer_fingerprint
        run_lengths = tensors.get("run_lengths")
        self.table = TokenTable(
            tensors["units"],
            tensors["sizes"],
            None if run_lengths is None else run_lengths.double(),
        )
        self.sample_rate = base.sample_rate
        self.hop_length = base.hop_length
        self.lookahead = base.lookahead
        self.streaming = base.streaming

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer, vocoder: Vocoder | None = None) -> Self:
        """Build one around ``vocoder``, or around the one that the units need no training for.

        Raises:
            PluginError: The tokenizer is no ``unit-bpe``, or its units have no such vocoder.
            FingerprintError: ``vocoder`` renders other units than those that were merged.
        """
        if not isinstance(tokenizer, UnitBPE):
            raise PluginError(
                f"vocoder {KIND!r} undoes the merges of tokenizer 'unit-bpe', "
                f"got {tokenizer.fingerprint!r}; choose another vocoder: 'speechlm list' shows them"
            )
        base = wrapped_vocoder(KIND, tokenizer, tokenizer.base, vocoder)
        table = tokenizer.table
        tensors = {"units": table.units, "sizes": table.sizes}
        if table.run_lengths is not None:
            tensors["run_lengths"] = table.run_lengths.float()
        return cls(UnitBPEVocoderConfig(tokenizer_fingerprint=tokenizer.fingerprint), base, tensors)

    @classmethod
    def from_options(cls, tokenizer: AudioTokenizer, options: Mapping[str, Any]) -> Self:
        """Build one around the vocoder in the folder ``options["base"]``.

        Raises:
            ConfigError: No base is named, or an option is not known.
            CheckpointError: It cannot be read.
            PluginError: As :meth:`for_tokenizer` does.
            FingerprintError: The same.
        """
        return cls.for_tokenizer(tokenizer, base_vocoder(options))

    def decode(
        self, units: Sequence[Units], speaker: Speaker | None = None, style: str | None = None
    ) -> list[Tensor]:
        """Render a batch of any mix of lengths, see :class:`speechlm.protocols.Vocoder`.

        Raises:
            FingerprintError: The tokens came from another tokenizer.
            InputError: Tokens or durations that there are not, or what ``base`` refuses.
        """
        for item in units:
            if item.fingerprint != self.tokenizer_fingerprint:
                raise FingerprintError(
                    part="this vocoder",
                    expected=self.tokenizer_fingerprint,
                    got=item.fingerprint,
                    remedy="tokenize with the tokenizer of the same bundle",
                )
        expanded = [
            Units(
                codes=self.expand(item.codes, item.durations),
                frame_rate=item.frame_rate,
                fingerprint=self.base.tokenizer_fingerprint,
            )
            for item in units
        ]
        return self.base.decode(expanded, speaker, style)

    def stream(
        self, speaker: Speaker | None = None, style: str | None = None
    ) -> UnitBPEVocoderStream:
        return UnitBPEVocoderStream(self, speaker, style)

    def expand(self, codes: Tensor, durations: Tensor | None = None) -> Tensor:
        """The units of tokens int64 [1, U] that last int64 [U] frames, as int64 [1, F].

        Raises:
            InputError: Several codebooks, or tokens or durations that there are not.
        """
        if codes.ndim != 2 or codes.shape[0] != 1:
            raise InputError(f"expected tokens [1, m] of one codebook, got {list(codes.shape)}")
        return self.table.expand(codes[0], durations)[None]

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, *pack(self.base, asdict(self.config), self._tensors))

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        base, config, tensors = unpack(part, VOCODERS)
        return cls(build(UnitBPEVocoderConfig, config), base, tensors, part.fingerprint)


class UnitBPEVocoderStream:
    """One live utterance; see :class:`speechlm.protocols.VocoderStream`."""

    def __init__(self, vocoder: UnitBPEVocoder, speaker: Speaker | None, style: str | None) -> None:
        self._vocoder = vocoder
        self._base = vocoder.base.stream(speaker, style)

    def push(self, codes: Tensor) -> Tensor:
        """Take tokens int64 [1, m]; give the samples now certain, float32 [n]."""
        return self._base.push(self._vocoder.expand(codes))

    def finish(self) -> Tensor:
        """Give the samples still held back, float32 [n], and close the stream."""
        return self._base.finish()
