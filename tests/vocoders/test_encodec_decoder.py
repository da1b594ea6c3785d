"""EnCodec's decoder gives the package's waves from codes alone, streamed to the bit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_codecs import encodec_file, small_encodec, speechlike, unequal
from torch import Tensor

from speechlm.errors import CheckpointError, FingerprintError, InputError, PluginError
from speechlm.testing import check_vocoder, check_vocoder_stream
from speechlm.units import Units
from speechlm_tokenizers.encodec import Encodec
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_vocoders.encodec import EncodecDecoder


@cache
def model(segments: bool) -> Any:
    return small_encodec(segments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encodec")


@pytest.fixture(scope="module")
def causal(folder: Path) -> Encodec:
    return fit(folder, False)


@pytest.fixture(scope="module")
def segments(folder: Path) -> Encodec:
    return fit(folder, True)


@pytest.fixture(scope="module")
def vocoder(causal: Encodec) -> EncodecDecoder:
    return EncodecDecoder.for_tokenizer(causal)


def fit(folder: Path, segments: bool, **options: Any) -> Encodec:
    path = folder / f"{segments}.th"
    if not path.exists():
        encodec_file(model(segments), path)
    return Encodec.fit([], {"model": str(path), "num_codebooks": 3, **options}, seed=0)


def any_units(tokenizer: Encodec, frames: int, seed: int = 0) -> Units:
    """Codes that a language model might give: any at all."""
    generator = torch.Generator().manual_seed(seed)
    shape = (tokenizer.num_codebooks, frames)
    codes = torch.randint(tokenizer.vocab_size, shape, generator=generator)
    return Units(codes=codes, frame_rate=tokenizer.frame_rate, fingerprint=tokenizer.fingerprint)


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_the_causal_one_keeps_every_promise_of_a_vocoder(
    vocoder: EncodecDecoder, causal: Encodec
) -> None:
    units = [causal.encode(wave[None])[0] for wave in unequal(8000, 500, 81)]
    check_vocoder(vocoder, [*units, any_units(causal, 100)])


def test_the_one_of_segments_keeps_every_promise_of_a_vocoder(segments: Encodec) -> None:
    vocoder = EncodecDecoder.for_tokenizer(segments)
    units = [segments.encode(wave[None])[0] for wave in unequal(100_000, 500)]
    check_vocoder(vocoder, [*units, any_units(segments, 700)])


@settings(max_examples=20, deadline=None)
@given(frames=st.integers(0, 60), chunk=st.integers(1, 60))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    vocoder: EncodecDecoder, causal: Encodec, frames: int, chunk: int
) -> None:
    check_vocoder_stream(vocoder, any_units(causal, frames), chunk)


@pytest.mark.parametrize("frames", [1, 6, 7, 8, 9, 100])
def test_waves_are_the_packages_at_any_length(
    vocoder: EncodecDecoder, causal: Encodec, frames: int
) -> None:
    units = any_units(causal, frames)
    if frames == 100:
        assert min(row.unique().numel() for row in units.codes) > 50
    with torch.no_grad():
        expected = model(False).decode([(units.codes[None], None)])[0, 0]
    assert_close(vocoder.decode([units])[0], expected)


def test_segments_are_the_packages_at_the_loudness_that_the_last_codebook_says(
    segments: Encodec,
) -> None:
    vocoder = EncodecDecoder.for_tokenizer(segments)
    units = segments.encode(speechlike(100_000)[None])[0]
    wave = vocoder.decode([units])[0]
    for part, codes in zip(wave.split(48_000), units.codes.split(600, dim=1), strict=True):
        scale = torch.tensor([[10 ** ((-90 + 96 * int(codes[3, 0]) / 127) / 20)]])
        with torch.no_grad():
            expected = model(True).decode([(codes[None, :3], scale)])[0].mean(dim=0)
        assert_close(part, expected)


def test_a_slip_in_the_loudness_of_a_frame_changes_nothing(segments: Encodec) -> None:
    vocoder = EncodecDecoder.for_tokenizer(segments)
    units = segments.encode(speechlike(30_000)[None])[0]
    slipped = units.codes.clone()
    slipped[3, 100:150] = 0
    same = vocoder.decode([units, replace(units, codes=slipped)])
    assert torch.equal(same[0], same[1])


def test_a_recording_comes_back_as_loud_as_it_was(segments: Encodec) -> None:
    """The network is random, so only its segments' loudness can be compared."""
    vocoder = EncodecDecoder.for_tokenizer(segments)
    loud = speechlike(40_000)
    waves = vocoder.decode(segments.encode(torch.stack([loud, 0.1 * loud])))
    ratio = waves[0].square().mean().sqrt() / waves[1].square().mean().sqrt()
    assert 8.5 < float(ratio) < 11.5


def test_merged_repeats_sound_the_same(vocoder: EncodecDecoder, causal: Encodec) -> None:
    units = replace(any_units(causal, 5), codes=any_units(causal, 5).codes.repeat_interleave(3, 1))
    assert torch.equal(vocoder.decode([units.collapse()])[0], vocoder.decode([units])[0])


def test_its_folder_holds_what_decoding_needs_and_no_more(
    vocoder: EncodecDecoder, tmp_path: Path
) -> None:
    vocoder.save(tmp_path / "vocoder")
    names = load_file(tmp_path / "vocoder" / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"decoder", "codebooks"}
    weights = tmp_path / "vocoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cannot be read .*save or download it again"):
        EncodecDecoder.load(tmp_path / "vocoder")


def test_a_loaded_tokenizer_has_all_that_its_vocoder_needs(
    vocoder: EncodecDecoder, causal: Encodec, tmp_path: Path
) -> None:
    causal.save(tmp_path / "tokenizer")
    loaded = Encodec.load(tmp_path / "tokenizer")
    assert EncodecDecoder.for_tokenizer(loaded).fingerprint == vocoder.fingerprint


def test_units_of_another_tokenizer_are_refused_though_all_shapes_agree(
    vocoder: EncodecDecoder, folder: Path
) -> None:
    other = fit(folder, False, block_frames=9)
    with pytest.raises(FingerprintError, match=r"made for 'encodec-.*' was given"):
        vocoder.decode([any_units(other, 10)])


def test_another_kind_of_tokenizer_is_refused() -> None:
    other = LogMelKMeans.fit([torch.randn(64_000)], {"num_units": 8, "iterations": 1}, seed=0)
    with pytest.raises(PluginError, match="renders units of 'encodec', got 'logmel-kmeans-"):
        EncodecDecoder.for_tokenizer(other)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.tensor([[0], [1], [128]]), r"expected units within 0\.\.127, got 0\.\.128"),
        (torch.tensor([[0], [-1], [0]]), r"expected units within 0\.\.127, got -1\.\.0"),
        (torch.zeros(2, 5, dtype=torch.int64), r"expected units int64 \[3, m\].* got .*\[2, 5\]"),
        (torch.zeros(3, 5), r"expected units int64 \[3, m\].* got torch\.float32 \[3, 5\]"),
    ],
)
def test_codes_it_cannot_render_are_refused(
    vocoder: EncodecDecoder, codes: Tensor, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        vocoder.stream().push(codes)


def test_a_voice_is_refused_because_the_units_hold_it(
    vocoder: EncodecDecoder, causal: Encodec
) -> None:
    with pytest.raises(InputError, match="gives the voice that its units hold"):
        vocoder.decode([any_units(causal, 5)], speaker="someone")
    with pytest.raises(InputError, match="gives the voice that its units hold"):
        vocoder.stream(style="glad")
