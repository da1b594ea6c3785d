"""DAC's decoder by windows gives transformers' waves, streamed to the bit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_codecs import small_dac, transformers_folder, unequal
from torch import Tensor

from speechlm.errors import FingerprintError, InputError, PluginError
from speechlm.testing import check_vocoder, check_vocoder_stream
from speechlm.units import Units
from speechlm_tokenizers.dac import Dac
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_vocoders.dac import DacDecoder


@cache
def model() -> Any:
    return small_dac()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transformers_folder(model(), tmp_path_factory.mktemp("dac"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Dac:
    return fit(folder)


@pytest.fixture(scope="module")
def vocoder(tokenizer: Dac) -> DacDecoder:
    return DacDecoder.for_tokenizer(tokenizer)


def fit(path: Path, **options: Any) -> Dac:
    options = {"model": str(path), "num_codebooks": 3, "window_s": 0.05, **options}
    return Dac.fit([], options, seed=0)


def any_units(tokenizer: Dac, frames: int) -> Units:
    generator = torch.Generator().manual_seed(frames)
    codes = torch.randint(128, (tokenizer.num_codebooks, frames), generator=generator)
    return Units(codes=codes, frame_rate=tokenizer.frame_rate, fingerprint=tokenizer.fingerprint)


def of_transformers(codes: Tensor) -> Tensor:
    with torch.no_grad():
        wave: Tensor = model().decode(audio_codes=codes[None]).audio_values[0]
    return wave


def test_it_keeps_every_promise_of_a_vocoder(vocoder: DacDecoder, tokenizer: Dac) -> None:
    units = [tokenizer.encode(wave[None])[0] for wave in unequal(5000, 500, 81)]
    check_vocoder(vocoder, [*units, any_units(tokenizer, 100)])


@settings(max_examples=20, deadline=None)
@given(frames=st.integers(0, 90), chunk=st.integers(1, 90))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    vocoder: DacDecoder, tokenizer: Dac, frames: int, chunk: int
) -> None:
    check_vocoder_stream(vocoder, any_units(tokenizer, frames), chunk)


@pytest.mark.parametrize("window_s", [0.05, 0.5])
@pytest.mark.parametrize("frames", [1, 2, 19, 20, 200])
def test_waves_are_transformers_up_to_the_few_samples_that_it_leaves_out(
    folder: Path, frames: int, window_s: float
) -> None:
    """In windows of 20 frames, and of 200 where all is one window."""
    tokenizer = fit(folder, window_s=window_s)
    units = any_units(tokenizer, frames)
    if frames == 200:
        assert min(row.unique().numel() for row in units.codes) > 50
    wave, expected = (
        DacDecoder.for_tokenizer(tokenizer).decode([units])[0],
        of_transformers(units.codes),
    )
    assert len(wave) == 40 * frames
    assert len(expected) == 40 * frames - 8
    assert float((wave[:-8] - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert not wave[-8:].any()


def test_an_even_ratio_leaves_nothing_out(tmp_path: Path) -> None:
    small = small_dac((2, 4, 8))
    tokenizer = fit(transformers_folder(small, tmp_path))
    units = any_units(tokenizer, 50)
    with torch.no_grad():
        expected = small.decode(audio_codes=units.codes[None]).audio_values[0]
    wave = DacDecoder.for_tokenizer(tokenizer).decode([units])[0]
    assert wave.shape == expected.shape
    assert float((wave - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("ratios", [(2, 4, 5), (2, 4, 8), (3, 2)])
def test_the_reach_of_a_window_is_that_of_the_convolutions(
    ratios: tuple[int, ...], tmp_path: Path
) -> None:
    """A gradient says which frames a frame's samples are made of."""
    small = small_dac(ratios)
    shape = fit(transformers_folder(small, tmp_path)).config.architecture
    frame, hop = 40, shape.hop_length
    features = torch.randn(1, shape.hidden_size, 80, requires_grad=True)
    small.decoder(features)[..., frame * hop : (frame + 1) * hop].square().sum().backward()
    assert features.grad is not None
    seen = features.grad[0].abs().sum(dim=0).nonzero()
    before, after = shape.decoder_reach()
    assert (int(seen.min()), int(seen.max())) == (frame - before, frame + after)


def test_its_folder_holds_no_encoder(vocoder: DacDecoder, tmp_path: Path) -> None:
    vocoder.save(tmp_path / "vocoder")
    names = load_file(tmp_path / "vocoder" / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"decoder", "quantizer"}


def test_a_loaded_tokenizer_has_all_that_its_vocoder_needs(
    vocoder: DacDecoder, tokenizer: Dac, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    loaded = Dac.load(tmp_path / "tokenizer")
    assert DacDecoder.for_tokenizer(loaded).fingerprint == vocoder.fingerprint


def test_units_of_another_tokenizer_are_refused_though_all_shapes_agree(
    vocoder: DacDecoder, folder: Path
) -> None:
    with pytest.raises(FingerprintError, match=r"made for 'dac-.*' was given"):
        vocoder.decode([any_units(fit(folder, window_s=0.06), 10)])


def test_another_kind_of_tokenizer_is_refused() -> None:
    other = LogMelKMeans.fit([torch.randn(64_000)], {"num_units": 8, "iterations": 1}, seed=0)
    with pytest.raises(PluginError, match="renders units of 'dac', got 'logmel-kmeans-"):
        DacDecoder.for_tokenizer(other)


def test_codes_and_voices_that_it_does_not_know_are_refused(
    vocoder: DacDecoder, tokenizer: Dac
) -> None:
    with pytest.raises(InputError, match=r"expected units within 0\.\.127, got 0\.\.128"):
        vocoder.stream().push(torch.tensor([[0], [1], [128]]))
    with pytest.raises(InputError, match=r"expected units int64 \[3, m\].* got .*\[4, 5\]"):
        vocoder.stream().push(torch.zeros(4, 5, dtype=torch.int64))
    with pytest.raises(InputError, match="gives the voice that its units hold"):
        vocoder.decode([any_units(tokenizer, 5)], speaker="someone")
