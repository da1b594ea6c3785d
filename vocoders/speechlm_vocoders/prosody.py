"""``prosody``: renders the units inside of tokenizer ``prosody`` by their own vocoder.

The rows of pitch, energy, rate and style are for the LM to read and write; a vocoder for the
base's units has no use for them. One that has is trained on all rows instead.
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
from speechlm_tokenizers.prosody import Prosody
from speechlm_tokenizers.wrapping import base_vocoder, pack, unpack, wrapped_vocoder

KIND = "prosody"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProsodyVocoderConfig:
    """What a ``prosody`` was built for."""

    tokenizer_fingerprint: str
    """The tokenizer with all rows."""
    codebook_sizes: tuple[int, ...]
    """Units of each of its rows."""
    num_rendered: int
    """How many of them, from the first on, are the base's."""


class ProsodyVocoder:
    """Has another vocoder render the base's rows, and checks that the others are there.

    Args:
        config: Whose rows.
        base: What renders the base's.
        known_as: Its fingerprint, where that is known.
    """

    def __init__(
        self, config: ProsodyVocoderConfig, base: Vocoder, known_as: str | None = None
    ) -> None:
        self.config = config
        self.base = base
        self.fingerprint = known_as or fingerprint(KIND, *pack(base, asdict(config), {}))
        self.tokenizer_fingerprint = config.tokenizer_fingerprint
        self.sample_rate = base.sample_rate
        self.hop_length = base.hop_length
        self.lookahead = base.lookahead
        self.streaming = base.streaming

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer, vocoder: Vocoder | None = None) -> Self:
        """Build one around ``vocoder``, or around the one that the base needs no training for.

        Raises:
            PluginError: The tokenizer is no ``prosody``, or its base has no such vocoder.
            FingerprintError: ``vocoder`` renders other units than the base's.
        """
        if not isinstance(tokenizer, Prosody):
            raise PluginError(
                f"vocoder {KIND!r} renders units of tokenizer 'prosody', "
                f"got {tokenizer.fingerprint!r}; choose another vocoder: 'speechlm list' shows them"
            )
        base = wrapped_vocoder(KIND, tokenizer, tokenizer.base, vocoder)
        config = ProsodyVocoderConfig(
            tokenizer_fingerprint=tokenizer.fingerprint,
            codebook_sizes=tokenizer.codebook_sizes,
            num_rendered=tokenizer.base.num_codebooks,
        )
        return cls(config, base)

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
            FingerprintError: The units came from another tokenizer.
            InputError: Units that there are not, or what ``base`` refuses.
        """
        for item in units:
            if item.fingerprint != self.tokenizer_fingerprint:
                raise FingerprintError(
                    part="this vocoder",
                    expected=self.tokenizer_fingerprint,
                    got=item.fingerprint,
                    remedy="tokenize with the tokenizer of the same bundle",
                )
        rendered = [
            Units(
                codes=self.rendered(item.expand().codes),
                frame_rate=item.frame_rate,
                fingerprint=self.base.tokenizer_fingerprint,
            )
            for item in units
        ]
        return self.base.decode(rendered, speaker, style)

    def stream(
        self, speaker: Speaker | None = None, style: str | None = None
    ) -> ProsodyVocoderStream:
        return ProsodyVocoderStream(self, speaker, style)

    def rendered(self, codes: Tensor) -> Tensor:
        """The base's rows of int64 [K, F].

        Raises:
            InputError: Another number of rows, or a unit that its row does not have.
        """
        sizes = self.config.codebook_sizes
        if codes.ndim != 2 or len(codes) != len(sizes):
            raise InputError(f"expected units [{len(sizes)}, m], got {list(codes.shape)}")
        for row, size in zip(codes, sizes, strict=True):
            if row.numel() and not 0 <= int(row.min()) <= int(row.max()) < size:
                raise InputError(
                    f"expected units within 0..{size - 1}, got {int(row.min())}..{int(row.max())}"
                )
        return codes[: self.config.num_rendered]

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, *pack(self.base, asdict(self.config), {}))

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        base, config, _ = unpack(part, VOCODERS)
        return cls(build(ProsodyVocoderConfig, config), base, part.fingerprint)


class ProsodyVocoderStream:
    """One live utterance; see :class:`speechlm.protocols.VocoderStream`."""

    def __init__(self, vocoder: ProsodyVocoder, speaker: Speaker | None, style: str | None) -> None:
        self._vocoder = vocoder
        self._base = vocoder.base.stream(speaker, style)

    def push(self, codes: Tensor) -> Tensor:
        """Take units int64 [K, m]; give the samples now certain, float32 [n]."""
        return self._base.push(self._vocoder.rendered(codes))

    def finish(self) -> Tensor:
        """Give the samples still held back, float32 [n], and close the stream."""
        return self._base.finish()
