"""A unit store small enough to train on in a second."""

from pathlib import Path

import torch

from speechlm.data.corpus import Word
from speechlm.data.shards import StoredUnits, UnitFormat
from speechlm.data.store import write_store
from speechlm.units import Units

FINGERPRINT = "toy-tokenizer-01"
NUM_UNITS = 50
FRAME_RATE = 50.0
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def recording(
    name: str,
    codes: list[int] | list[list[int]],
    *,
    split: str | None = None,
    reply: str | None = None,
    text: str | None = None,
) -> StoredUnits:
    """One stream of codes, or a list of streams; the words of a text share the frames evenly."""
    streams = torch.tensor(codes, dtype=torch.int64)
    units = Units(
        codes=streams[None] if streams.ndim == 1 else streams,
        frame_rate=FRAME_RATE,
        fingerprint=FINGERPRINT,
    )
    spelt = [] if text is None else text.split()
    ends = [units.duration_s * (at + 1) / len(spelt) for at in range(len(spelt))]
    return StoredUnits(
        id=name,
        units=units,
        split=split,
        reply=reply,
        text=text,
        words=None
        if text is None
        else tuple(
            Word(word=word, start_s=start, end_s=end)
            for word, start, end in zip(spelt, [0.0, *ends], ends, strict=False)
        ),
        duration_s=units.duration_s,
    )


def write_rows(path: Path, rows: list[StoredUnits], *, num_codebooks: int = 1) -> None:
    unit_format = UnitFormat(
        fingerprint=FINGERPRINT,
        frame_rate=FRAME_RATE,
        vocab_size=NUM_UNITS,
        num_codebooks=num_codebooks,
    )
    write_store(path, unit_format, rows)


def write_toy_store(
    path: Path, *, num_questions: int = 120, seed: int = 0, num_codebooks: int = 1
) -> None:
    """Noisy questions of ten kinds, each kind with its own answer; a tenth is validation.

    All have text. Codebooks after the first repeat it, each one unit higher.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int = 1) -> torch.Tensor:
        return torch.randint(low, high, (size,), generator=generator)

    def streams(codes: torch.Tensor) -> list[list[int]]:
        return [((codes + k) % NUM_UNITS).tolist() for k in range(num_codebooks)]

    answers = [draw(0, NUM_UNITS, int(draw(4, 7))) for _ in range(10)]
    questions = [draw(0, NUM_UNITS, int(draw(10, 14))) for _ in range(10)]
    rows = [
        recording(f"answer-{kind}", streams(answer), text=WORDS[kind])
        for kind, answer in enumerate(answers)
    ]
    for number in range(num_questions):
        asked = questions[number % 10].clone()
        asked[int(draw(0, len(asked)))] = int(draw(0, NUM_UNITS))
        split = "valid" if number % 11 == 0 else "train"
        reply = f"answer-{number % 10}"
        text = f"what is {WORDS[number % 10]}"
        rows.append(recording(f"q{number}", streams(asked), split=split, reply=reply, text=text))
    write_rows(path, rows, num_codebooks=num_codebooks)
