"""Fitting tokenizer ``prosody``: means and quantiles of a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from speechlm.errors import CorpusError
from speechlm.protocols import AudioTokenizer
from speechlm_tokenizers.prosody_config import (
    SOUND_ROWS,
    ProsodyConfig,
    has_sounds,
    normaliser_of,
    num_frames,
    pitch_tracker,
    sounds_of,
)
from speechlm_tokenizers.prosody_rows import Rate


def quantiles(
    config: ProsodyConfig, base: AudioTokenizer, waves: Iterable[Tensor]
) -> dict[str, Tensor]:
    """The edges of bins, and the means, of a corpus: see :class:`Prosody`."""
    tracker = pitch_tracker(config, base) if "f0" in config.streams else None
    recordings: list[list[dict[str, Tensor]]] = []
    counts = [torch.zeros(0, dtype=torch.int64)]
    left = config.fit_frames
    for wave in waves:
        if has_sounds(config):
            sounds = sounds_of(config, base, tracker)
            recordings.append([*sounds.push(wave), *sounds.finish()])
        if "rate" in config.streams:
            rate = Rate(num_frames(config.rate_window_s, base))
            counts.append(rate.push(base.encode(wave[None])[0].codes[0]))
        left -= -(-len(wave) // base.hop_length)
        if left <= 0:
            break
    tensors = {}
    if "rate" in config.streams:
        tensors["rate_edges"] = _edges("rate", torch.cat(counts).double(), config.rate_bins)
    rows = [row for row in SOUND_ROWS if row in config.streams]
    # Once as they are, for the means that recordings start from; then less the means so far.
    for row in rows:
        values = _heard(row, recordings, config, base, {})
        tensors[f"{row}_mean"] = values.mean()[None]
    for row, bins in (("f0", config.f0_bins), ("energy", config.energy_bins)):
        if row in rows:
            values = _heard(row, recordings, config, base, tensors)
            tensors[f"{row}_edges"] = _edges(row, values, bins - 1)
    return tensors


def _heard(
    row: str,
    recordings: Iterable[list[dict[str, Tensor]]],
    config: ProsodyConfig,
    base: AudioTokenizer,
    tensors: Mapping[str, Tensor],
) -> Tensor:
    """All values of a row where there is one, float64 [n], as recordings are normalised."""
    values = [torch.zeros(0, dtype=torch.float64)]
    for blocks in recordings:
        normaliser = normaliser_of(config, base, tensors)
        values += [normaliser.apply(block)[row] for block in blocks]
    together = torch.cat(values)
    return together[~together.isnan()]


def _edges(row: str, values: Tensor, bins: int) -> Tensor:
    """The values at which bins as frequent as each other begin, but for the first one's.

    Raises:
        CorpusError: There are no values.
    """
    if not len(values):
        raise CorpusError(
            f"the corpus has nothing to fit {row!r} on: expected recordings of speech, got none "
            "or silence; give others, or leave it out of tokenizer.options.streams"
        )
    picked = values.sort().values[torch.arange(1, bins) * len(values) // bins]
    return torch.tensor(sorted(set(picked.tolist())), dtype=torch.float64)
