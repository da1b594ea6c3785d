"""A small corpus of recorded words in a row, whose times are known."""

from __future__ import annotations

import json
from pathlib import Path

import soundfile
import torch

from speechlm.audio import load_audio
from speechlm.data.human import human_clips

RATE = 16_000
WORDS = 3
"""In each recording."""


def write_corpus(folder: Path, count: int = 4) -> Path:
    """Recordings of about two seconds, with their texts and when each word is said."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = list(human_clips("answers").values())[: count * WORDS]
    rows = []
    for number in range(count):
        group = clips[number * WORDS : (number + 1) * WORDS]
        at, words, waves = 0, [], []
        for clip in group:
            waves.append(load_audio(clip.path, RATE))
            words.append([clip.text, at / RATE, (at + len(waves[-1])) / RATE])
            at += len(waves[-1])
        soundfile.write(folder / f"r{number}.flac", torch.cat(waves).numpy(), RATE)
        text = " ".join(clip.text for clip in group)
        rows.append({"id": f"r{number}", "audio": f"r{number}.flac", "text": text, "words": words})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "corpus.jsonl").write_text(lines, encoding="utf-8")
    return folder
