"""mimi's decoder gives transformers' samples, and streams them to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_mimi import HOP, see_only_the_window, small_mimi
from torch import Tensor

from speechlm.errors import FingerprintError, InputError, PluginError
from speechlm.plugins import load_vocoder
from speechlm.testing import check_vocoder, check_vocoder_stream
from speechlm.units import Units
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_tokenizers.mimi import Mimi
from speechlm_vocoders.mimi import MimiDecoder

FRAMES = 90


@pytest.fixture(scope="module")
def reference() -> Any:
    return small_mimi()


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mimi")
    reference.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Mimi:
    return Mimi.fit([], {"model": str(folder)}, seed=1)


@pytest.fixture(scope="module")
def vocoder(tokenizer: Mimi) -> MimiDecoder:
    return MimiDecoder.for_tokenizer(tokenizer)


def units_for(tokenizer: Mimi, frames: int = FRAMES) -> Units:
    """Random ones, all in play."""
    generator = torch.Generator().manual_seed(3)
    size = (tokenizer.num_codebooks, frames)
    codes = torch.randint(tokenizer.vocab_size, size, generator=generator)
    return Units(codes=codes, frame_rate=tokenizer.frame_rate, fingerprint=tokenizer.fingerprint)


@torch.no_grad()
def wave_of(reference: Any, units: Units) -> Tensor:
    wave: Tensor = reference.decode(units.codes[None]).audio_values[0, 0]
    return wave


def test_it_gives_the_samples_of_transformers(
    reference: Any, tokenizer: Mimi, vocoder: MimiDecoder
) -> None:
    units = units_for(tokenizer)
    assert all(len(level.unique()) > 50 for level in units.codes)
    expected = wave_of(reference, units)
    wave = vocoder.decode([units])[0]
    assert wave.shape == (FRAMES * HOP,)
    assert (wave - expected).abs().max() < 1e-4 * expected.abs().max()


def test_attention_ends_at_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    see_only_the_window(monkeypatch)
    reference = small_mimi(sliding_window=12)
    reference.save_pretrained(tmp_path)
    tokenizer = Mimi.fit([], {"model": str(tmp_path)}, seed=1)
    units = units_for(tokenizer)
    expected = wave_of(reference, units)
    close = 1e-4 * expected.abs().max()
    wave = MimiDecoder.for_tokenizer(tokenizer).decode([units])[0]
    assert (wave - expected).abs().max() < close
    wider = wave_of(small_mimi(sliding_window=13), units)
    assert (wider - expected).abs().max() > close, "the window makes no difference"


def test_it_keeps_every_promise_of_a_vocoder(tokenizer: Mimi, vocoder: MimiDecoder) -> None:
    check_vocoder(vocoder, [units_for(tokenizer, frames) for frames in (25, 1, 7, 0)])


@settings(max_examples=15, deadline=None)
@given(frames=st.integers(0, 15), chunk=st.integers(1, 16))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    tokenizer: Mimi, vocoder: MimiDecoder, frames: int, chunk: int
) -> None:
    check_vocoder_stream(vocoder, units_for(tokenizer, frames), chunk)


def test_two_streams_do_not_touch_each_other(tokenizer: Mimi, vocoder: MimiDecoder) -> None:
    codes = units_for(tokenizer, 20).codes
    stream, other = vocoder.stream(), vocoder.stream()
    parts = []
    for frame in codes.split(1, dim=1):
        parts.append(stream.push(frame))
        other.push(frame.flip(0))
    whole = vocoder.decode([units_for(tokenizer, 20)])[0]
    assert torch.equal(torch.cat([*parts, stream.finish()]), whole)


def test_a_batch_is_rendered_as_each_alone(tokenizer: Mimi, vocoder: MimiDecoder) -> None:
    units = [units_for(tokenizer, frames) for frames in (3, 12, 5)]
    for item, wave in zip(units, vocoder.decode(units), strict=True):
        assert torch.equal(vocoder.decode([item])[0], wave)


def test_blocks_of_frames_keep_every_promise_too(
    folder: Path, tokenizer: Mimi, vocoder: MimiDecoder
) -> None:
    in_blocks = Mimi.fit([], {"model": str(folder), "block": 4}, seed=1)
    of_blocks = MimiDecoder.for_tokenizer(in_blocks)
    assert of_blocks.lookahead == 3
    check_vocoder(of_blocks, [units_for(in_blocks, frames) for frames in (21, 4, 3, 1)])
    wave = of_blocks.decode([units_for(in_blocks)])[0]
    expected = vocoder.decode([units_for(tokenizer)])[0]
    assert (wave - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_codebooks_are_rendered_as_transformers_does(
    reference: Any, folder: Path, count: int
) -> None:
    tokenizer = Mimi.fit([], {"model": str(folder), "num_codebooks": count}, seed=1)
    units = units_for(tokenizer, 20)
    expected = wave_of(reference, units)
    wave = MimiDecoder.for_tokenizer(tokenizer).decode([units])[0]
    assert (wave - expected).abs().max() < 1e-4 * expected.abs().max()


def test_it_is_what_auto_means_for_the_tokenizer(tokenizer: Mimi, vocoder: MimiDecoder) -> None:
    assert load_vocoder("auto", tokenizer).fingerprint == vocoder.fingerprint


def test_merged_repeats_sound_the_same(tokenizer: Mimi, vocoder: MimiDecoder) -> None:
    units = units_for(tokenizer, 6)
    longer = replace(units, codes=units.codes.repeat_interleave(3, dim=1))
    assert torch.equal(vocoder.decode([longer.collapse()])[0], vocoder.decode([longer])[0])


def test_units_of_another_tokenizer_are_refused(folder: Path, vocoder: MimiDecoder) -> None:
    other = Mimi.fit([], {"model": str(folder), "block": 2}, seed=1)
    with pytest.raises(FingerprintError, match=r"made for 'mimi-.*' was given"):
        vocoder.decode([units_for(other)])


def test_another_tokenizer_is_refused() -> None:
    other = LogMelKMeans.fit([torch.randn(64_000)], {"num_units": 8, "iterations": 1}, seed=1)
    with pytest.raises(PluginError, match=r"renders units of 'mimi', got 'logmel-kmeans-"):
        MimiDecoder.for_tokenizer(other)


def test_units_that_it_cannot_have_are_refused(tokenizer: Mimi, vocoder: MimiDecoder) -> None:
    for wrong in (-1, tokenizer.vocab_size):
        codes = units_for(tokenizer, 2).codes
        codes[3, 1] = wrong
        with pytest.raises(InputError, match=r"expected units within 0\.\.255, got"):
            vocoder.stream().push(codes)
    with pytest.raises(InputError, match=r"expected units \[8, m\] of 8 codebooks, got \[5, 2\]"):
        vocoder.stream().push(units_for(tokenizer, 2).codes[:5])


def test_a_voice_of_ones_own_is_refused(tokenizer: Mimi, vocoder: MimiDecoder) -> None:
    for wish in ({"speaker": "someone"}, {"style": "happy"}):
        with pytest.raises(InputError, match="the voice that the units keep"):
            vocoder.decode([units_for(tokenizer, 1)], **wish)
