"""Which sequences an epoch visits, and which of them share a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from speechlm.training.sequences import SequenceSet

LENGTH_BLUR = 0.05
"""Up to how much longer a sequence is taken to be when batches are made, as a share."""


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
