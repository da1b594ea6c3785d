"""Recordings to units, some at a time: what each process of ``speechlm tokenize`` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speechlm.data.corpus import Recording
from speechlm.errors import AudioError
from speechlm.protocols import AudioTokenizer
from speechlm.units import Units

LONG_S = 120.0
"""Longer recordings are tokenized alone, by blocks where the tokenizer streams exactly."""
BLOCK_S = 30.0
"""Length of such a block."""
BATCH_S = 240.0
"""Most audio of a batch, padding included: bounds the memory of features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """What became of one recording."""

    id: str
    units: Units | None
    """None when it could not be used."""
    duration_s: float = 0.0
    reason: str = ""
    """Why it could not be used."""


def encode_recordings(tokenizer: AudioTokenizer, recordings: Sequence[Recording]) -> list[Encoded]:
    """Load and tokenize recordings, the unusable ones given with their reason.

    At most one long recording is in memory, and never its features as a whole if the
    tokenizer streams exactly.

    Returns:
        One outcome a recording, in no particular order.
    """
    outcomes: list[Encoded] = []
    short: list[tuple[str, Tensor]] = []
    for recording in recordings:
        try:
            wave = recording.load(tokenizer.sample_rate)
        except AudioError as error:
            outcomes.append(Encoded(id=recording.id, units=None, reason=str(error)))
            continue
        if len(wave) > LONG_S * tokenizer.sample_rate:
            outcomes.append(_encoded(tokenizer, recording.id, wave, encode_long(tokenizer, wave)))
        else:
            short.append((recording.id, wave))
    for batch in _batches(short, int(BATCH_S * tokenizer.sample_rate)):
        lengths = torch.tensor([len(wave) for _, wave in batch])
        padded = torch.nn.utils.rnn.pad_sequence([wave for _, wave in batch], batch_first=True)
        for (name, wave), units in zip(batch, tokenizer.encode(padded, lengths), strict=True):
            outcomes.append(_encoded(tokenizer, name, wave, units))
    return outcomes


def encode_long(tokenizer: AudioTokenizer, wave: Tensor) -> Units:
    """Tokenize float32 [T] by blocks, where that gives exactly the units of the whole."""
    if tokenizer.streaming != "exact":
        return tokenizer.encode(wave[None])[0]
    stream = tokenizer.stream()
    block = int(BLOCK_S * tokenizer.sample_rate)
    codes = [stream.push(wave[start : start + block]) for start in range(0, len(wave), block)]
    codes.append(stream.finish())
    return Units(
        codes=torch.cat(codes, dim=1),
        frame_rate=tokenizer.frame_rate,
        fingerprint=tokenizer.fingerprint,
        durations=getattr(stream, "durations", None),
        variable_rate=getattr(tokenizer, "variable_rate", False),
    )


def _encoded(tokenizer: AudioTokenizer, name: str, wave: Tensor, units: Units) -> Encoded:
    return Encoded(id=name, units=units, duration_s=len(wave) / tokenizer.sample_rate)


def _batches(
    waves: list[tuple[str, Tensor]], max_samples: int
) -> Iterator[list[tuple[str, Tensor]]]:
    """Group recordings of like length, so that little of a batch is padding."""
    batch: list[tuple[str, Tensor]] = []
    for name, wave in sorted(waves, key=lambda named: len(named[1])):
        if batch and (len(batch) + 1) * len(wave) > max_samples:
            yield batch
            batch = []
        batch.append((name, wave))
    if batch:
        yield batch
