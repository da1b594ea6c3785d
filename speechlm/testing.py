"""The invariants that every tokenizer and vocoder promises, as checks to run on your own part.

Each raises :class:`AssertionError` saying where the part breaks its promise::

    from speechlm.testing import check_tokenizer

    def test_my_tokenizer() -> None:
        check_tokenizer(MyTokenizer.load(folder), waves)
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from speechlm.protocols import AudioTokenizer, Vocoder
from speechlm.units import Units


def check_tokenizer(tokenizer: AudioTokenizer, waves: Sequence[Tensor]) -> None:
    """All of a tokenizer's promises, on recordings float32 [T] of unequal lengths."""
    for wave in waves:
        check_unit_count(tokenizer, wave)
        check_repeats(tokenizer.encode(wave[None])[0])
    check_batch_invariance(tokenizer, waves)
    check_tokenizer_isolation(tokenizer, waves)
    if tokenizer.streaming == "exact":
        for wave in waves:
            check_tokenizer_stream(tokenizer, wave, chunk=tokenizer.hop_length // 2 + 1)
    check_tokenizer_round_trip(tokenizer, waves[0])


def check_unit_count(tokenizer: AudioTokenizer, wave: Tensor) -> None:
    """``ceil(T / hop_length)`` frames, all units within the vocabulary.

    Units that are not one a frame (``variable_rate``) last as many frames in all.
    """
    units = tokenizer.encode(wave[None])[0]
    expected = -(-len(wave) // tokenizer.hop_length)
    assert (units.num_codebooks, units.num_frames) == (tokenizer.num_codebooks, expected), (
        f"{len(wave)} samples gave {[units.num_codebooks, units.num_frames]}, "
        f"expected {[tokenizer.num_codebooks, expected]}"
    )
    assert units.variable_rate == getattr(tokenizer, "variable_rate", False)
    assert units.variable_rate == (units.durations is not None)
    for row, size in zip(units.codes, _codebook_sizes(tokenizer), strict=True):
        assert row.min() >= 0
        assert row.max() < size
    assert units.fingerprint == tokenizer.fingerprint
    assert units.frame_rate == tokenizer.frame_rate


def check_repeats(units: Units) -> None:
    """Merging repeats loses nothing: the units come back, frame for frame."""
    merged = units.collapse()
    assert merged.durations is not None
    assert bool((merged.durations >= 1).all()), "a unit that lasts no frame"
    assert merged.num_frames == units.num_frames
    if units.durations is None:
        repeats = (merged.codes[:, 1:] == merged.codes[:, :-1]).all(dim=0)
        assert not bool(repeats.any()), "a repeat was not merged"
        assert torch.equal(merged.expand().codes, units.codes), "merging repeats lost units"


def check_batch_invariance(tokenizer: AudioTokenizer, waves: Sequence[Tensor]) -> None:
    """A recording's units are the same alone and in a padded batch, whatever the padding."""
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = torch.full((len(waves), int(lengths.max()) + 777), 0.5)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    together = tokenizer.encode(batch, lengths)
    for index, (wave, units) in enumerate(zip(waves, together, strict=True)):
        alone = tokenizer.encode(wave[None])[0]
        assert _same(alone, units), f"row {index} changed in a batch"


def check_tokenizer_stream(tokenizer: AudioTokenizer, wave: Tensor, chunk: int) -> None:
    """However cut, the stream equals the whole; and no unit comes later than promised."""
    units = tokenizer.encode(wave[None])[0]
    lasting = torch.ones(units.codes.shape[1]) if units.durations is None else units.durations
    stream = tokenizer.stream()
    parts: list[Tensor] = []
    heard = given = 0
    for piece in torch.split(wave, chunk):
        parts.append(stream.push(piece))
        heard += len(piece)
        given += parts[-1].shape[1]
        frames = int(lasting[:given].sum())
        due = max(0, heard - tokenizer.lookahead) // tokenizer.hop_length
        assert frames >= due, f"after {heard} samples {frames} frames came, {due} were due"
    streamed = torch.cat([*parts, stream.finish()], dim=1)
    assert torch.equal(streamed, units.codes), (
        f"a stream cut every {chunk} samples gave other units"
    )


def check_tokenizer_isolation(tokenizer: AudioTokenizer, waves: Sequence[Tensor]) -> None:
    """Two streams open at once do not touch each other."""
    first, second = waves[0], waves[-1]
    alone = tokenizer.stream()
    expected = torch.cat([alone.push(first), alone.finish()], dim=1)
    stream, other = tokenizer.stream(), tokenizer.stream()
    half = len(first) // 2
    parts = [stream.push(first[:half])]
    other.push(second)
    parts += [stream.push(first[half:])]
    other.finish()
    parts += [stream.finish()]
    assert torch.equal(torch.cat(parts, dim=1), expected), "another stream changed this one"


def check_tokenizer_round_trip(tokenizer: AudioTokenizer, wave: Tensor) -> None:
    """Saved and loaded it is the same tokenizer: same fingerprint, same units."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "part")
        loaded = type(tokenizer).load(Path(folder) / "part")
    assert loaded.fingerprint == tokenizer.fingerprint
    before, after = tokenizer.encode(wave[None])[0], loaded.encode(wave[None])[0]
    assert _same(before, after), "a loaded tokenizer gives other units"


def check_vocoder(vocoder: Vocoder, units: Sequence[Units]) -> None:
    """All of a vocoder's promises, on units of unequal lengths."""
    together = vocoder.decode(units)
    for index, (item, wave) in enumerate(zip(units, together, strict=True)):
        expected = item.num_frames * vocoder.hop_length
        assert wave.shape == (expected,), f"row {index}: {len(wave)} samples, expected {expected}"
        assert torch.isfinite(wave).all()
        alone = vocoder.decode([item])[0]
        assert torch.allclose(alone, wave, atol=1e-5), f"row {index} changed in a batch"
        if vocoder.streaming == "exact":
            check_vocoder_stream(vocoder, item, chunk=3)
    with tempfile.TemporaryDirectory() as folder:
        vocoder.save(Path(folder) / "part")
        loaded = type(vocoder).load(Path(folder) / "part")
    assert loaded.fingerprint == vocoder.fingerprint
    assert torch.equal(loaded.decode([units[0]])[0], together[0])


def check_vocoder_stream(vocoder: Vocoder, units: Units, chunk: int) -> None:
    """However cut, the stream equals the whole; and no sample comes later than promised.

    Units that are not one a frame, or that the vocoder lets last longer (``variable_rate`` of
    either), come without their durations, as from an LM; a unit is at least one frame.
    """
    if units.variable_rate or getattr(vocoder, "variable_rate", False):
        units = replace(units, durations=None)
    whole = vocoder.decode([units])[0]
    stream = vocoder.stream()
    parts: list[Tensor] = []
    taken = given = 0
    for piece in torch.split(units.expand().codes, chunk, dim=1):
        parts.append(stream.push(piece))
        taken += piece.shape[1]
        given += len(parts[-1])
        # One frame's grace: a window may begin before the first sample.
        due = max(0, taken - vocoder.lookahead - 1) * vocoder.hop_length
        assert given >= due, f"after {taken} frames {given} samples came, {due} were due"
    streamed = torch.cat([*parts, stream.finish()])
    assert torch.equal(streamed, whole), f"a stream cut every {chunk} frames gave other samples"


def _codebook_sizes(tokenizer: AudioTokenizer) -> Sequence[int]:
    """Units of each codebook; ``codebook_sizes`` where they are not all ``vocab_size``."""
    default = (tokenizer.vocab_size,) * tokenizer.num_codebooks
    return getattr(tokenizer, "codebook_sizes", default)


def _same(one: Units, other: Units) -> bool:
    if one.durations is None or other.durations is None:
        return one.durations is other.durations and torch.equal(one.codes, other.codes)
    return torch.equal(one.durations, other.durations) and torch.equal(one.codes, other.codes)
