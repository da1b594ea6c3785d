"""What a unit store gives to learn from: conversations, and recordings on their own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from speechlm.data.store import UnitStore
from speechlm.errors import CorpusError
from speechlm.layouts.conversation import LMSequence, encode_conversation, encode_speech
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.units import Units

LENGTH_BLUR = 0.05
"""Up to how much longer a sequence is taken to be when batches are made, as a share."""


class SequenceSet:
    """The sequences of one split, by number: conversations first, then speech.

    A recording with a reply is a question, and makes a conversation; every other one is
    speech on its own. Speech longer than ``max_length`` is cut into pieces; a conversation
    that long cannot be, and is counted in ``num_too_long``.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, question_weight: float, max_length: int, frame_rate: float
    ) -> None:
        self.vocabulary = vocabulary
        self.question_weight = question_weight
        self.max_length = max_length
        self.num_too_long = 0
        self.num_unanswered = 0
        """Questions whose reply is not in the store."""
        self._frame_rate = frame_rate
        self._codes: list[Tensor] = []
        self._conversations: list[tuple[int, int]] = []
        self._pieces: list[tuple[int, int, int]] = []

    @classmethod
    def of_split(
        cls,
        store: UnitStore,
        vocabulary: Vocabulary,
        split: str,
        *,
        question_weight: float,
        max_length: int,
    ) -> Self:
        """Gather a split of a store; recordings without any split belong to ``"train"``.

        Raises:
            InputError: Units of several streams, or without their repeats.
        """
        sequences = cls(
            vocabulary,
            question_weight=question_weight,
            max_length=max_length,
            frame_rate=store.frame_rate,
        )
        numbers: dict[str, int] = {}

        def number_of(recording_id: str, units: Units) -> int:
            if recording_id not in numbers:
                vocabulary.check(units)
                numbers[recording_id] = len(sequences._codes)
                sequences._codes.append(units.codes.to(torch.int32))
            return numbers[recording_id]

        for row in store.rows():
            if (row.split or "train") != split:
                continue
            if row.reply is None:
                sequences._add_speech(number_of(row.id, row.units))
            elif row.reply not in store:
                sequences.num_unanswered += 1
            else:
                question = number_of(row.id, row.units)
                answer = numbers.get(row.reply)
                if answer is None:
                    answer = number_of(row.reply, store[row.reply].units)
                sequences._add_conversation(question, answer)
        return sequences

    @property
    def num_conversations(self) -> int:
        return len(self._conversations)

    @property
    def num_speech(self) -> int:
        return len(self._pieces)

    def __len__(self) -> int:
        return self.num_conversations + self.num_speech

    def lengths(self) -> Tensor:
        """LM positions of every sequence, int64 [N]."""
        frames = [codes.shape[1] for codes in self._codes]
        lengths = [frames[q] + frames[a] + 3 for q, a in self._conversations]
        for recording, start, stop in self._pieces:
            lengths.append(stop - start + 1 + (stop == frames[recording]))
        return torch.tensor(lengths, dtype=torch.int64)

    def sequence(self, index: int, *, unit_dropout: float = 0.0, seed: int = 0) -> LMSequence:
        """Lay out one sequence.

        Args:
            index: Which one.
            unit_dropout: Probability that a unit of a question is replaced by a random one.
            seed: Of those replacements, and of nothing else.
        """
        if index >= self.num_conversations:
            recording, start, stop = self._pieces[index - self.num_conversations]
            codes = self._codes[recording]
            sequence = encode_speech(self.vocabulary, self._units(codes[:, start:stop]))
            if stop < codes.shape[1]:  # the recording goes on, so it does not end here
                return LMSequence(ids=sequence.ids[:-1], loss_weights=sequence.loss_weights[:-1])
            return sequence
        question, answer = self._conversations[index]
        asked = self._codes[question]
        if unit_dropout > 0:
            asked = self._dropped(asked, unit_dropout, seed)
        return encode_conversation(
            self.vocabulary,
            self._units(asked),
            self._units(self._codes[answer]),
            question_weight=self.question_weight,
        )

    def fingerprint(self) -> str:
        """Name the sequences and their order, as ``units-0123456789abcdef``."""
        digest = hashlib.sha256(repr((self._conversations, self._pieces)).encode())
        for codes in self._codes:
            digest.update(codes.contiguous().numpy().tobytes())
        return f"units-{digest.hexdigest()[:16]}"

    def check_not_empty(self, path: object) -> None:
        """Refuse to train on nothing.

        Raises:
            CorpusError: There is no sequence.
        """
        if len(self) == 0:
            raise CorpusError(
                f"{path} holds no sequence to train on: {self.num_unanswered} questions lack "
                f"their reply and {self.num_too_long} conversations are longer than "
                f"{self.max_length} LM positions (model.max_positions, train.batch_units)"
            )

    def _add_conversation(self, question: int, answer: int) -> None:
        frames = self._codes[question].shape[1] + self._codes[answer].shape[1]
        if frames + 3 > self.max_length:
            self.num_too_long += 1
        else:
            self._conversations.append((question, answer))

    def _add_speech(self, recording: int) -> None:
        frames = self._codes[recording].shape[1]
        room = self.max_length - 2
        for start in range(0, frames, room):
            self._pieces.append((recording, start, min(start + room, frames)))

    def _units(self, codes: Tensor) -> Units:
        return Units(
            codes=codes.long(),
            frame_rate=self._frame_rate,
            fingerprint=self.vocabulary.tokenizer_fingerprint,
        )

    def _dropped(self, codes: Tensor, probability: float, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        dropped = torch.rand(codes.shape, generator=generator) < probability
        size = self.vocabulary.stream_sizes[0]
        others = torch.randint(size, codes.shape, generator=generator, dtype=codes.dtype)
        return torch.where(dropped, others, codes)


def epoch_order(
    sequences: SequenceSet, *, speech_fraction: float, generator: torch.Generator
) -> Tensor:
    """Which sequences an epoch visits, in random order, int64 [N].

    Every conversation once; of the speech as much as makes ``speech_fraction`` of the whole,
    or all of it where there is no conversation.
    """
    conversations = torch.arange(sequences.num_conversations)
    speech = torch.randperm(sequences.num_speech, generator=generator)
    speech = speech + sequences.num_conversations
    if len(conversations) and len(speech) and speech_fraction < 1:
        wanted = round(len(conversations) * speech_fraction / (1 - speech_fraction))
        speech = speech.repeat(-(-wanted // len(speech)))[:wanted]
    elif len(conversations) and len(speech):
        conversations = conversations[:0]
    order = torch.cat([conversations, speech])
    return order[torch.randperm(len(order), generator=generator)]


def cut_into_batches(
    order: Tensor, lengths: Tensor, *, batch_units: int, generator: torch.Generator
) -> list[list[int]]:
    """Group sequences of similar length into batches of at most ``batch_units`` positions.

    A row a sequence, so that no two can see each other; on a CPU that is faster than several
    in a row under a mask. What is similar is blurred by :data:`LENGTH_BLUR`, or the same
    sequences would meet in every epoch.

    Args:
        order: Sequences in random order, int64 [N].
        lengths: LM positions of every sequence, int64 [all].
        batch_units: Rows times the longest row, at most; a longer sequence is alone.
        generator: Shuffles the batches.
    """
    blurred = lengths[order] * (1 + LENGTH_BLUR * torch.rand(len(order), generator=generator))
    batches = _fill(order[blurred.argsort(stable=True)], lengths, batch_units)
    return [batches[number] for number in torch.randperm(len(batches), generator=generator)]


def cut_evenly(sequences: SequenceSet, *, batch_units: int) -> list[list[int]]:
    """Group all sequences by length alone, always the same way."""
    lengths = sequences.lengths()
    return _fill(lengths.argsort(stable=True), lengths, batch_units)


def _fill(ranked: Tensor, lengths: Tensor, batch_units: int) -> list[list[int]]:
    batches: list[list[int]] = []
    longest = 0
    for index, length in zip(ranked.tolist(), lengths[ranked].tolist(), strict=True):
        longest = max(longest, length)
        if not batches or (len(batches[-1]) + 1) * longest > batch_units:
            batches.append([])
            longest = length
        batches[-1].append(index)
    return batches


def sequence_seed(seed: int, epoch: int, index: int) -> int:
    """A seed of a sequence's own augmentation in one epoch."""
    described = f"{seed} {epoch} {index}".encode()
    return int.from_bytes(hashlib.sha256(described).digest()[:7], "little")


def epoch_batches(
    sequences: SequenceSet, *, speech_fraction: float, batch_units: int, seed: int, epoch: int
) -> Sequence[list[int]]:
    """The batches of an epoch, the same whenever it is asked for."""
    generator = torch.Generator().manual_seed(sequence_seed(seed, epoch, -1))
    order = epoch_order(sequences, speech_fraction=speech_fraction, generator=generator)
    return cut_into_batches(
        order, sequences.lengths(), batch_units=batch_units, generator=generator
    )
