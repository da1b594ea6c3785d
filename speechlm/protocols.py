"""What a tokenizer and a vocoder are. Plug-ins satisfy these; nothing subclasses them.

``streaming`` says how a part's stream relates to the whole:

``"exact"``
    However a recording is cut, the concatenated output of ``push`` and ``finish`` equals the
    output for the whole, element for element.
``"windowed"``
    The stream sees a bounded lookahead; its agreement with the whole is measured and printed.

State that lasts between calls lives in the stream object, never in the part, so that any
number of streams of one part can be open at once.

Beside these a part's class may offer ways to be made:

``fit(waves, options, seed)``
    For tokenizers: from recordings, or from a checkpoint alone where ``needs_corpus(options)``
    is False. What ``speechlm fit`` calls.
``for_tokenizer(tokenizer)``
    For vocoders: with no training of its own. A tokenizer's ``default_vocoder``, where it has
    one, names the vocoder that can be made so.
``fit_sample_rate(options)``
    For tokenizers whose class has no ``sample_rate`` of its own: the rate that ``fit`` takes, Hz.
``base``
    Of tokenizers that go on top of another: that one. ``default_vocoder`` is then one whose
    ``for_tokenizer(tokenizer, vocoder)`` takes a vocoder that was trained for the base.
``variable_rate``
    True of tokenizers whose units are not one a frame: ``Units.durations`` says how long each
    lasts, and their streams' ``durations`` how long all that were given so far.
``from_options(tokenizer, options)``
    For vocoders: from a published checkpoint that options name, None where they name none.
    What ``speechlm fit vocoder.name=...`` calls.
``training(...)``
    By ``speechlm train``: see :class:`PartTraining`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from torch import Tensor

from speechlm.units import Units

Streaming = Literal["exact", "windowed"]
Speaker = str | Tensor
"""A voice: a name that the vocoder knows, or an embedding of a reference recording, float32 [D]
(:mod:`speechlm.speaker`); [B, D] gives each item of a batch its own."""


class TokenizerStream(Protocol):
    """One live recording being tokenized; not reusable after :meth:`finish`."""

    def push(self, samples: Tensor) -> Tensor:
        """Take float32 [n] samples, n >= 0; give every unit now certain, int64 [K, m]."""
        ...

    def finish(self) -> Tensor:
        """Give the units still held back, int64 [K, m], and close the stream."""
        ...


class AudioTokenizer(Protocol):
    """Waveform to discrete units.

    1. *Batch invariance*: a recording's units are the same alone and in any batch.
    2. *Chunk invariance*: see ``streaming`` in this module's docstring.
    3. *Count*: a recording of T samples gives ``ceil(T / hop_length)`` frames.
    """

    @property
    def sample_rate(self) -> int:
        """Rate of the waveform it takes, Hz."""
        ...

    @property
    def hop_length(self) -> int:
        """Samples a frame of units."""
        ...

    @property
    def frame_rate(self) -> float:
        """``sample_rate / hop_length``, Hz."""
        ...

    @property
    def num_codebooks(self) -> int: ...

    @property
    def vocab_size(self) -> int:
        """Units a codebook; where they differ the most, and ``codebook_sizes`` has each."""
        ...

    @property
    def lookahead(self) -> int:
        """Samples beyond a frame's end that the stream needs before it gives the frame."""
        ...

    @property
    def streaming(self) -> Streaming: ...

    @property
    def fingerprint(self) -> str:
        """Name and hash of configuration and weights."""
        ...

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> list[Units]:
        """Tokenize a padded batch.

        Args:
            wave: float32 [B, T] at ``sample_rate``.
            lengths: Real samples of each row, int64 [B]; all T when not given.

        Returns:
            The units of each row, ``codes`` int64 [K, ceil(length / hop_length)].
        """
        ...

    def stream(self) -> TokenizerStream: ...

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder: Path) -> Self: ...


class VocoderStream(Protocol):
    """One live utterance being rendered; not reusable after :meth:`finish`."""

    def push(self, codes: Tensor) -> Tensor:
        """Take units int64 [K, m], m >= 0; give every sample now certain, float32 [n]."""
        ...

    def finish(self) -> Tensor:
        """Give the samples still held back, float32 [n], and close the stream."""
        ...


class Vocoder(Protocol):
    """Discrete units to waveform: the mirror image of :class:`AudioTokenizer`.

    One that takes the embedding of a voice tells its length as ``speaker_dim``: with that of
    :mod:`speechlm.speaker`, a recording is resynthesized in its own voice.
    """

    @property
    def sample_rate(self) -> int:
        """Rate of the waveform it gives, Hz."""
        ...

    @property
    def hop_length(self) -> int:
        """Samples a frame of units."""
        ...

    @property
    def lookahead(self) -> int:
        """Frames beyond the present one that the stream needs."""
        ...

    @property
    def streaming(self) -> Streaming: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def tokenizer_fingerprint(self) -> str:
        """The tokenizer whose units it renders; others are refused."""
        ...

    def decode(
        self, units: Sequence[Units], speaker: Speaker | None = None, style: str | None = None
    ) -> list[Tensor]:
        """Render a batch, each float32 [F * hop_length].

        Raises:
            FingerprintError: The units came from another tokenizer.
            InputError: A speaker or style that it does not know, or units beyond its vocabulary.
        """
        ...

    def stream(self, speaker: Speaker | None = None, style: str | None = None) -> VocoderStream: ...

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder: Path) -> Self: ...

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer) -> Self:
        """Build one that needs no training of its own.

        Raises:
            PluginError: This vocoder must be trained, or cannot render that tokenizer.
        """
        ...


class ResumableWaves(Protocol):
    """Recordings to fit on, float32 [T], of which a fit that was killed can skip what it heard.

    ``speechlm fit`` gives such to ``fit``; a plain iterable of waves does as well.
    """

    @property
    def work(self) -> Path:
        """Folder for what shall survive a kill; removed once the tokenizer is saved."""
        ...

    def __iter__(self) -> Iterator[Tensor]: ...

    def after(self, count: int) -> Iterator[Tensor]:
        """All but the first ``count``, which are not even read."""
        ...


Need = Literal["units", "speaker", "text"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SegmentBatch:
    """Pieces of recordings to train a tokenizer or vocoder on."""

    waves: Tensor
    """float32 [B, T]; zero beyond ``lengths``."""
    lengths: Tensor
    """Real samples of each, int64 [B]."""
    number: int
    """Which batch of the run this is, from 0: for schedules."""
    units: Tensor | None = None
    """Of the same stretches, int64 [B, K, F], as the whole recordings gave them; 0 beyond."""
    speakers: Tensor | None = None
    """Embeddings of the voices, float32 [B, D]."""
    texts: tuple[str, ...] | None = None
    """What is said, where whole recordings are taken."""

    def to(self, device: Any) -> SegmentBatch:
        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=True)

        return replace(
            self,
            waves=self.waves.to(device, non_blocking=True),
            lengths=self.lengths.to(device, non_blocking=True),
            units=moved(self.units),
            speakers=moved(self.speakers),
        )


class PartTraining(Protocol):
    """A tokenizer or vocoder in training: an ``nn.Module``, discriminators and all.

    A tokenizer's class gives one by ``training(options, seed)``, a vocoder's by
    ``training(tokenizer, options, seed)``. Its ``state_dict`` is what a checkpoint keeps, so
    all that changes in training is a parameter or a persistent buffer of it.
    """

    needs: frozenset[Need]
    """What of a :class:`SegmentBatch` it reads beside waves."""
    sample_rate: int
    """Rate of the waves it takes, Hz."""
    hop_length: int
    """Segments begin and end at multiples of this, samples."""
    whole: bool
    """Whether it takes whole recordings; else segments of ``segments.duration_s``."""
    learning_rates: Mapping[str, float]
    """Regular expression of parameter names to their learning rate, as a multiple of
    ``train.learning_rate``; parameters that match none have 1."""

    def __call__(self, batch: SegmentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the loss of a training step, float32 [], and what to report, float32 [] each.

        Adversarial training: the generator's loss through discriminators whose parameters are
        held constant, plus the discriminators' loss on the detached output, in one sum.
        """
        ...

    def measure(self, batch: SegmentBatch) -> dict[str, Tensor]:
        """Give what validation reports, float32 [] each; ``loss`` is the one to watch."""
        ...

    def part(self) -> Any:
        """The tokenizer or vocoder with the weights of this moment, on the CPU."""
        ...
