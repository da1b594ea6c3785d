"""Speaker embeddings of a corpus, made once a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from speechlm.data.corpus import Recording
from speechlm.errors import AudioError
from speechlm.files import write_aside
from speechlm.progress import progress
from speechlm.speaker import EMBEDDING_DIM, SAMPLE_RATE, default_speaker_encoder


def embed_voices(recordings: Sequence[Recording], path: Path) -> dict[str, Tensor]:
    """The embedding of each recording by its id, float32 [256], kept in ``path``.

    One that cannot be read has zeros; nothing is cut from it.

    Raises:
        PluginError: The speaker encoder's weights are not installed.
    """
    try:
        voices = load_file(path)
    except (OSError, SafetensorError):
        voices = {}
    missing = {each.id: each for each in recordings if each.id not in voices}
    if missing:
        encoder = default_speaker_encoder()
        with progress("hearing voices", len(missing), "recordings") as advance:
            for recording in missing.values():
                try:
                    wave = recording.load(SAMPLE_RATE)
                    voices[recording.id] = encoder.embed(wave, SAMPLE_RATE).clone()
                except AudioError:
                    voices[recording.id] = torch.zeros(EMBEDDING_DIM)
                advance()
        with write_aside(path) as aside:
            save_file(voices, aside)
    return voices
