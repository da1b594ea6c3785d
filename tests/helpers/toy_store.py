"""A unit store small enough to train on in a second."""

from pathlib import Path

import torch

from speechlm.data.shards import StoredUnits, UnitFormat
from speechlm.data.store import write_store
from speechlm.units import Units

FINGERPRINT = "toy-tokenizer-01"
NUM_UNITS = 50


def recording(
    name: str, codes: list[int], *, split: str | None = None, reply: str | None = None
) -> StoredUnits:
    units = Units(
        codes=torch.tensor([codes], dtype=torch.int64), frame_rate=50.0, fingerprint=FINGERPRINT
    )
    return StoredUnits(id=name, units=units, split=split, reply=reply, duration_s=len(codes) / 50)


def write_rows(path: Path, rows: list[StoredUnits]) -> None:
    unit_format = UnitFormat(
        fingerprint=FINGERPRINT, frame_rate=50.0, vocab_size=NUM_UNITS, num_codebooks=1
    )
    write_store(path, unit_format, rows)


def write_toy_store(path: Path, *, num_questions: int = 120, seed: int = 0) -> None:
    """Noisy questions of ten kinds, each kind with its own answer; a tenth is validation."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int = 1) -> torch.Tensor:
        return torch.randint(low, high, (size,), generator=generator)

    answers = [draw(0, NUM_UNITS, int(draw(4, 7))) for _ in range(10)]
    questions = [draw(0, NUM_UNITS, int(draw(10, 14))) for _ in range(10)]
    rows = [recording(f"answer-{kind}", answer.tolist()) for kind, answer in enumerate(answers)]
    for number in range(num_questions):
        asked = questions[number % 10].clone()
        asked[int(draw(0, len(asked)))] = int(draw(0, NUM_UNITS))
        split = "valid" if number % 11 == 0 else "train"
        reply = f"answer-{number % 10}"
        rows.append(recording(f"q{number}", asked.tolist(), split=split, reply=reply))
    write_rows(path, rows)
