"""X-Codec's decoder by windows gives transformers' waves, streamed to the bit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_codecs import small_xcodec, transformers_folder, unequal

from speechlm.errors import FingerprintError, InputError, PluginError
from speechlm.testing import check_vocoder, check_vocoder_stream
from speechlm.units import Units
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_tokenizers.xcodec import XCodec
from speechlm_vocoders.xcodec import XCodecDecoder


@cache
def model() -> Any:
    return small_xcodec()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transformers_folder(model(), tmp_path_factory.mktemp("xcodec"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> XCodec:
    return fit(folder)


@pytest.fixture(scope="module")
def vocoder(tokenizer: XCodec) -> XCodecDecoder:
    return XCodecDecoder.for_tokenizer(tokenizer)


def fit(path: Path, **options: Any) -> XCodec:
    return XCodec.fit([], {"model": str(path), "num_codebooks": 3, **options}, seed=0)


def any_units(tokenizer: XCodec, frames: int) -> Units:
    generator = torch.Generator().manual_seed(frames)
    codes = torch.randint(128, (tokenizer.num_codebooks, frames), generator=generator)
    return Units(codes=codes, frame_rate=tokenizer.frame_rate, fingerprint=tokenizer.fingerprint)


def test_it_keeps_every_promise_of_a_vocoder(vocoder: XCodecDecoder, tokenizer: XCodec) -> None:
    units = [tokenizer.encode(wave[None])[0] for wave in unequal(5000, 500)]
    check_vocoder(vocoder, [*units, any_units(tokenizer, 130)])


@settings(max_examples=15, deadline=None)
@given(frames=st.integers(0, 170), chunk=st.integers(1, 170))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    vocoder: XCodecDecoder, tokenizer: XCodec, frames: int, chunk: int
) -> None:
    check_vocoder_stream(vocoder, any_units(tokenizer, frames), chunk)


@pytest.mark.parametrize("frames", [1, 50, 60, 200])
def test_waves_are_transformers(vocoder: XCodecDecoder, tokenizer: XCodec, frames: int) -> None:
    """In windows of 50 frames with as much around each as the decoder sees."""
    units = any_units(tokenizer, frames)
    if frames == 200:
        assert min(row.unique().numel() for row in units.codes) > 50
    with torch.no_grad():
        expected = model().decode(units.codes[None]).audio_values[0, 0]
    wave = vocoder.decode([units])[0]
    assert wave.shape == expected.shape == (320 * frames,)
    assert float((wave - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_its_folder_holds_no_encoder(vocoder: XCodecDecoder, tmp_path: Path) -> None:
    vocoder.save(tmp_path / "vocoder")
    names = load_file(tmp_path / "vocoder" / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"acoustic_decoder", "fc2", "quantizer"}


def test_a_loaded_tokenizer_has_all_that_its_vocoder_needs(
    vocoder: XCodecDecoder, tokenizer: XCodec, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    loaded = XCodec.load(tmp_path / "tokenizer")
    assert XCodecDecoder.for_tokenizer(loaded).fingerprint == vocoder.fingerprint


def test_units_of_another_tokenizer_are_refused_though_all_shapes_agree(
    vocoder: XCodecDecoder, folder: Path
) -> None:
    with pytest.raises(FingerprintError, match=r"made for 'xcodec-.*' was given"):
        vocoder.decode([any_units(fit(folder, context_s=0.5), 10)])


def test_another_kind_of_tokenizer_is_refused() -> None:
    other = LogMelKMeans.fit([torch.randn(64_000)], {"num_units": 8, "iterations": 1}, seed=0)
    with pytest.raises(PluginError, match="renders units of 'xcodec', got 'logmel-kmeans-"):
        XCodecDecoder.for_tokenizer(other)


def test_codes_and_voices_that_it_does_not_know_are_refused(
    vocoder: XCodecDecoder, tokenizer: XCodec
) -> None:
    with pytest.raises(InputError, match=r"expected units within 0\.\.127, got 0\.\.128"):
        vocoder.stream().push(torch.tensor([[0], [1], [128]]))
    with pytest.raises(InputError, match=r"expected units int64 \[3, m\].* got .*\[4, 5\]"):
        vocoder.stream().push(torch.zeros(4, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="gives the voice that its units hold"):
        vocoder.decode([any_units(tokenizer, 5)], speaker="someone")
