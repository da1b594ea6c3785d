"""Speaker embeddings of a corpus, made once a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from speechlm.data.corpus import Recording
from speechlm.errors import AudioError
from speechlm.files import write_aside
from speechlm.progress import progress
from speechlm.speaker import EMBEDDING_DIM, SAMPLE_RATE, default_speaker_encoder

MOST_OF_A_SPEAKER = 4
"""Recordings that a known speaker's voice is the mean of."""


def embed_voices(recordings: Sequence[Recording], path: Path) -> dict[str, Tensor]:
    """The embedding of each recording's voice by its id, float32 [256]; they are kept in ``path``.

    Where the corpus names its speakers, a recording has its speaker's, the mean of a few; else
    its own. One that cannot be read has zeros, and nothing is cut from it.

    Raises:
        PluginError: The speaker encoder's weights are not installed.
    """
    of_speaker: dict[str, list[Recording]] = {}
    for recording in {each.id: each for each in recordings}.values():
        of_speaker.setdefault(_voice(recording), []).append(recording)
    try:
        voices = load_file(path)
    except (OSError, SafetensorError):
        voices = {}
    missing = {voice: some for voice, some in of_speaker.items() if voice not in voices}
    if missing:
        encoder = default_speaker_encoder()
        with progress("hearing voices", len(missing), "voices") as advance:
            for voice, some in missing.items():
                chosen = some[:: max(1, len(some) // MOST_OF_A_SPEAKER)][:MOST_OF_A_SPEAKER]
                heard = []
                for recording in chosen:
                    try:
                        wave = recording.load(SAMPLE_RATE)
                    except AudioError:
                        continue
                    heard.append(encoder.embed(wave, SAMPLE_RATE))
                mean = torch.stack(heard).mean(dim=0) if heard else torch.zeros(EMBEDDING_DIM)
                voices[voice] = F.normalize(mean, dim=0)
                advance()
        with write_aside(path) as aside:
            save_file(voices, aside)
    return {each.id: voices[_voice(each)] for each in recordings}


def _voice(recording: Recording) -> str:
    """What its voice is kept under."""
    if recording.speaker is None:
        return f"recording {recording.id}"
    return f"speaker {recording.speaker}"
