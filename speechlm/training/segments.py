"""What a tokenizer or vocoder trains on: pieces of a corpus' recordings, drawn by seed.

Batch number n of a run is a function of the seed and n alone, so a resumed run goes on with
what it would have heard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from speechlm.config import RunConfig, SegmentsConfig
from speechlm.data.corpus import Recording, open_corpus
from speechlm.data.store import UnitArrays, UnitStore
from speechlm.errors import AudioError, CorpusError, FingerprintError, InputError
from speechlm.progress import progress, say
from speechlm.protocols import PartTraining, SegmentBatch

MAX_VALID = 64
"""Recordings of the validation split that are measured, a segment each."""
POOL_BATCHES = 32
"""Batches' worth of whole recordings that are sorted by length together."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Source:
    """A recording that segments are cut from."""

    recording: Recording
    num_samples: int
    """At the rate of the part; what its file says, not yet read."""


Piece = tuple[Recording, int, Tensor]
"""Where a segment comes from, at which sample it begins, and its samples."""


class SegmentSet:
    """The recordings of one split, and what goes with each.

    Args:
        sources: What to cut from; a recording may come several times, and counts as often.
        training: The part that will be trained: its rate, its frames, what it needs.
        units: The recordings' units, where it needs them.
        speakers: The recordings' speaker embeddings by id, float32 [D], where it needs those.
        config: Sizes.
        seed: Decides every batch.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        training: PartTraining,
        config: SegmentsConfig,
        *,
        seed: int,
        units: UnitArrays | None = None,
        speakers: dict[str, Tensor] | None = None,
    ) -> None:
        self._sources = sources
        self._training = training
        self._config = config
        self._seed = seed
        self._units = units
        self._unit_rows = {} if units is None else {id: row for row, id in enumerate(units.ids)}
        self._speakers = speakers
        frames = max(1, round(config.duration_s * training.sample_rate / training.hop_length))
        self.segment = frames * training.hop_length
        """Samples of a segment."""
        self._budget = config.batch_size * self.segment
        self._cumulative = torch.tensor([each.num_samples for each in sources]).cumsum(0)
        self._cache: dict[str, Tensor] = {}
        self._cache_left = config.cache_gb * 1e9
        self._unusable: set[str] = set()
        self._epoch_plan = lru_cache(2)(self._plan_epoch)

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def duration_s(self) -> float:
        if not self._sources:
            return 0.0
        return float(self._cumulative[-1]) / self._training.sample_rate

    def fingerprint(self) -> str:
        """Name what is trained on, by recordings and their lengths."""
        digest = hashlib.sha256()
        for each in self._sources:
            digest.update(f"{each.recording.id}\0{each.num_samples}\n".encode())
        return digest.hexdigest()[:16]

    def batch(self, number: int) -> SegmentBatch:
        """The ``number``-th batch of a run, from 0.

        Raises:
            AudioError: None of many recordings drawn can be read.
        """
        generator = torch.Generator().manual_seed(_seed_of(self._seed, number))
        if self._training.whole:
            return self._whole(self._recordings_of(number), number)
        pieces = [self._draw(generator) for _ in range(self._config.batch_size)]
        return self._collate(pieces, number)

    def valid_batches(self) -> list[SegmentBatch]:
        """The same pieces every time: the middle of each recording, or whole ones."""
        chosen = self._sources[: MAX_VALID * 4]
        chosen = chosen[:: max(1, len(chosen) // MAX_VALID)][:MAX_VALID]
        batches = []
        size = self._config.batch_size
        for start in range(0, len(chosen), size):
            some = chosen[start : start + size]
            if self._training.whole:
                batches.append(self._whole(some, start // size))
                continue
            pieces = []
            for each in some:
                try:
                    pieces.append(self._middle(each))
                except AudioError as error:
                    self._leave_out(each, error)
            if pieces:
                batches.append(self._collate(pieces, start // size))
        return batches

    def _middle(self, source: Source) -> Piece:
        wave = self._wave(source.recording)
        hop = self._training.hop_length
        start = max(0, len(wave) - self.segment) // 2 // hop * hop
        return source.recording, start, wave[start : start + self.segment]

    def _draw(self, generator: torch.Generator) -> Piece:
        """A recording by its length and a place in it: every second is as likely."""
        reason: Exception | None = None
        for _ in range(100):
            draw = torch.rand(2, generator=generator, dtype=torch.float64)
            place = (draw[0] * self._cumulative[-1]).long()
            source = self._sources[int(torch.searchsorted(self._cumulative, place, right=True))]
            if source.recording.id in self._unusable:
                continue
            try:
                wave = self._wave(source.recording)
            except AudioError as error:
                self._leave_out(source, reason := error)
                continue
            hop = self._training.hop_length
            room = max(0, len(wave) - self.segment) // hop
            start = int(draw[1] * (room + 1)) * hop
            return source.recording, start, wave[start : start + self.segment]
        raise AudioError(f"none of 100 recordings drawn can be used; the last: {reason}")

    def _recordings_of(self, number: int) -> Sequence[Source]:
        epoch = 0
        while number >= len(plan := self._epoch_plan(epoch)):
            number -= len(plan)
            epoch += 1
        return [self._sources[index] for index in plan[number]]

    def _plan_epoch(self, epoch: int) -> list[list[int]]:
        """Whole recordings in batches of similar length, each recording once."""
        generator = torch.Generator().manual_seed(_seed_of(self._seed, -1 - epoch))
        order = torch.randperm(len(self._sources), generator=generator).tolist()
        pool = POOL_BATCHES * self._config.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            batch: list[int] = []
            for index in sorted(
                order[start : start + pool], key=lambda each: self._sources[each].num_samples
            ):
                # Sorted: the newest is the longest, to which the others are padded.
                longest = self._sources[index].num_samples
                if batch and (len(batch) + 1) * longest > self._budget:
                    batches.append(batch)
                    batch = []
                batch.append(index)
            if batch:
                batches.append(batch)
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[index] for index in shuffled]

    def _whole(self, sources: Sequence[Source], number: int) -> SegmentBatch:
        pieces = []
        for source in sources:
            try:
                pieces.append((source.recording, 0, self._wave(source.recording)))
            except AudioError as error:
                self._leave_out(source, error)
        if not pieces:
            raise AudioError(
                f"none of the {len(sources)} recordings of a batch can be used; "
                f"one of them: {sources[0].recording.source}"
            )
        return self._collate(pieces, number)

    def _collate(
        self, pieces: Sequence[tuple[Recording, int, Tensor]], number: int
    ) -> SegmentBatch:
        hop = self._training.hop_length
        lengths = [len(wave) for _, _, wave in pieces]
        longest = max(lengths) if self._training.whole else self.segment
        longest = -(-longest // hop) * hop
        waves = torch.zeros(len(pieces), longest)
        for row, (_, _, wave) in zip(waves, pieces, strict=True):
            row[: len(wave)] = wave
        units = None
        if self._units is not None:
            units = torch.zeros(
                len(pieces), self._units.num_codebooks, longest // hop, dtype=torch.int64
            )
            for row, (recording, start, wave) in zip(units, pieces, strict=True):
                codes = self._units.codes_of(self._unit_rows[recording.id])
                part = codes[:, start // hop : start // hop + -(-len(wave) // hop)]
                row[:, : part.shape[1]] = part
        speakers = None
        if self._speakers is not None:
            speakers = torch.stack([self._speakers[recording.id] for recording, _, _ in pieces])
        texts = None
        if "text" in self._training.needs:
            texts = tuple(recording.text or "" for recording, _, _ in pieces)
        return SegmentBatch(
            waves=waves,
            lengths=torch.tensor(lengths),
            number=number,
            units=units,
            speakers=speakers,
            texts=texts,
        )

    def _wave(self, recording: Recording) -> Tensor:
        """float32 [T]; kept as 16 bits while there is room."""
        if (kept := self._cache.get(recording.id)) is not None:
            return kept.float() / 32767
        wave = recording.load(self._training.sample_rate)
        kept = (wave.clamp(-1, 1) * 32767).round().short()
        if 2 * len(kept) <= self._cache_left:
            self._cache_left -= 2 * len(kept)
            self._cache[recording.id] = kept
        # What is kept and what is read anew must be the same, or a resumed run would differ.
        return kept.float() / 32767

    def _leave_out(self, source: Source, error: Exception) -> None:
        if source.recording.id not in self._unusable:
            self._unusable.add(source.recording.id)
            say(f"left out of the training: {error}")


def _seed_of(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:7], "big")


def open_segments(
    config: RunConfig, training: PartTraining, tokenizer_fingerprint: str | None
) -> tuple[SegmentSet, SegmentSet]:
    """Find what a run trains a part on, and what it measures it on.

    A question comes with the recording that answers it, as in the training of a unit LM, so
    that the answering voice has its share however few recordings it has.

    Raises:
        CorpusError: Nothing can be trained on, or recordings lack what the part needs.
        FingerprintError: The unit store is of another tokenizer.
    """
    corpus = open_corpus(config.corpus_path)
    units = None
    if "units" in training.needs:
        store = UnitStore.open(config.store_path)
        if store.fingerprint != tokenizer_fingerprint:
            raise FingerprintError(
                part="the unit store",
                expected=store.fingerprint,
                got=str(tokenizer_fingerprint),
                remedy="run 'speechlm tokenize' again with this tokenizer",
            )
        if store.format.variable_rate:
            raise InputError(
                f"the units of {store.fingerprint!r} are not one a frame, as a vocoder is trained "
                "on: train one for the tokenizer inside, and give it as vocoder.path"
            )
        units = store.arrays()
    known = None if units is None else set(units.ids)
    usable = [each for each in corpus if known is None or each.id in known]
    if not usable:
        raise CorpusError(
            f"{config.store_path} holds no recording of {config.corpus_path}; "
            "run 'speechlm tokenize' on this corpus"
        )
    if "text" in training.needs:
        usable = [each for each in usable if each.text]
        if not usable:
            raise CorpusError(
                f"{config.corpus_path}: training {config.tokenizer.name!r} needs the text of its "
                'recordings, and none has one; give JSON lines with a "text" each'
            )
    lengths = _lengths(usable, training.sample_rate)
    sources = {
        each.id: Source(recording=each, num_samples=lengths[each.id])
        for each in usable
        if each.id in lengths
    }
    splits: dict[str, list[Source]] = {"train": [], "valid": []}
    answers = {each.reply for each in usable if each.reply is not None}
    for each in usable:
        split = each.split or "train"
        # An answer is heard with its questions.
        if split not in splits or each.id not in sources or each.id in answers:
            continue
        splits[split].append(sources[each.id])
        if each.reply in sources:
            splits[split].append(sources[each.reply])
    if not splits["train"]:
        raise CorpusError(f"{config.corpus_path} holds nothing to train on that can be read")
    speakers = None
    if "speaker" in training.needs:
        from speechlm.training.voices import embed_voices

        speakers = embed_voices(
            [each.recording for split in splits.values() for each in split],
            config.train_path / "voices.safetensors",
        )
    train, valid = (
        SegmentSet(
            splits[split],
            training,
            config.segments,
            seed=config.seed,
            units=units,
            speakers=speakers,
        )
        for split in ("train", "valid")
    )
    return train, valid


def _lengths(recordings: Sequence[Recording], sample_rate: int) -> dict[str, int]:
    """Samples of each recording by its header; one that has none is left out, and said so."""
    lengths: dict[str, int] = {}
    with progress("measuring", len(recordings), "recordings") as advance:
        for recording in recordings:
            try:
                lengths[recording.id] = max(1, int(recording.measure_s() * sample_rate))
            except AudioError as error:
                say(f"left out of the training: {error}")
            advance()
    return lengths
