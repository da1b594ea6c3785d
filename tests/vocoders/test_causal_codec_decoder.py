"""The decoder of causal-codec keeps a vocoder's promises and renders its own units alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_causal_codec import VARIANTS, human_waves, random_codec

from speechlm.errors import CheckpointError, FingerprintError, InputError, PluginError
from speechlm.plugins import load_vocoder
from speechlm.testing import check_vocoder, check_vocoder_stream
from speechlm.units import Units
from speechlm_tokenizers.causal_codec import CausalCodec
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_vocoders.causal_codec import CausalCodecDecoder


@pytest.fixture(scope="module")
def codec() -> CausalCodec:
    return random_codec()


@pytest.fixture(scope="module")
def vocoder(codec: CausalCodec) -> CausalCodecDecoder:
    return CausalCodecDecoder.for_tokenizer(codec)


def _units(codec: CausalCodec, frames: int, seed: int = 0) -> Units:
    """Random units: every code is in play."""
    codes = torch.randint(
        codec.vocab_size,
        (codec.num_codebooks, frames),
        generator=torch.Generator().manual_seed(seed),
    )
    return Units(codes=codes, frame_rate=codec.frame_rate, fingerprint=codec.fingerprint)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_keeps_every_promise_of_a_vocoder(variant: str) -> None:
    codec = random_codec(**VARIANTS[variant])
    units = [_units(codec, frames) for frames in (150, 1, 7, 23)]
    assert units[0].codes.unique().numel() > 50
    check_vocoder(CausalCodecDecoder.for_tokenizer(codec), units)


@settings(max_examples=25, deadline=None)
@given(frames=st.integers(0, 60), chunk=st.integers(1, 50))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    codec: CausalCodec, vocoder: CausalCodecDecoder, frames: int, chunk: int
) -> None:
    check_vocoder_stream(vocoder, _units(codec, frames), chunk)


def test_two_streams_do_not_touch_each_other(
    codec: CausalCodec, vocoder: CausalCodecDecoder
) -> None:
    one, two = _units(codec, 30, seed=1), _units(codec, 30, seed=2)
    expected = vocoder.decode([one])[0]
    first, second = vocoder.stream(), vocoder.stream()
    parts = [first.push(one.codes[:, :13])]
    second.push(two.codes[:, :17])
    parts += [first.push(one.codes[:, 13:])]
    second.finish()
    assert torch.equal(torch.cat([*parts, first.finish()]), expected)


def test_a_batch_of_any_mix_of_lengths_is_its_rows(
    codec: CausalCodec, vocoder: CausalCodecDecoder
) -> None:
    units = [_units(codec, frames, seed=frames) for frames in (5, 0, 40, 12)]
    together = vocoder.decode(units)
    assert [len(wave) for wave in together] == [1600, 0, 12_800, 3840]
    for item, wave in zip(units, together, strict=True):
        assert torch.equal(vocoder.decode([item])[0], wave)


def test_sound_hangs_on_the_lookahead_and_no_further(
    codec: CausalCodec, vocoder: CausalCodecDecoder
) -> None:
    """The frame after the next one changes nothing; the next one does."""
    units = _units(codec, 40)
    whole = vocoder.decode([units])[0]
    for frame in (20, 21, 23):
        other = units.codes.clone()
        other[:, frame:] = (other[:, frame:] + 1) % codec.vocab_size
        changed = vocoder.decode([replace(units, codes=other)])[0]
        same = (frame - codec.config.lookahead) * codec.hop_length
        assert torch.equal(whole[:same], changed[:same])
        assert not torch.equal(whole[same : same + 320], changed[same : same + 320])


def test_merged_repeats_sound_the_same(codec: CausalCodec, vocoder: CausalCodecDecoder) -> None:
    units = _units(codec, 12)
    repeated = replace(units, codes=units.codes.repeat_interleave(3, dim=1))
    assert repeated.collapse().codes.shape[1] == 12
    assert torch.equal(vocoder.decode([repeated.collapse()])[0], vocoder.decode([repeated])[0])


def test_the_tokenizer_names_it_and_it_is_made_by_name(codec: CausalCodec) -> None:
    vocoder = load_vocoder("auto", codec)
    assert isinstance(vocoder, CausalCodecDecoder)
    assert vocoder.tokenizer_fingerprint == codec.fingerprint


def test_fewer_codebooks_are_rendered_by_their_own_decoder(
    codec: CausalCodec, vocoder: CausalCodecDecoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("codec") / "tokenizer"
    codec.save(folder)
    fewer = CausalCodec.fit([], {"model": str(folder), "num_codebooks": 1}, seed=1)
    wave = human_waves(1)[0]
    units = fewer.encode(wave[None])[0]
    alone = CausalCodecDecoder.for_tokenizer(fewer)
    check_vocoder(alone, [units])
    with pytest.raises(FingerprintError, match=r"made for 'causal-codec-.*' was given"):
        vocoder.decode([units])


def test_units_of_another_tokenizer_are_refused_though_all_shapes_agree(
    codec: CausalCodec, vocoder: CausalCodecDecoder
) -> None:
    other = random_codec(seed=1)
    with pytest.raises(FingerprintError, match="tokenize with the tokenizer of the same bundle"):
        vocoder.decode([_units(codec, 5), _units(other, 5)])


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.tensor([[0], [64], [1]]), r"expected units within 0\.\.63, got 0\.\.64"),
        (torch.tensor([[0], [-1], [1]]), r"expected units within 0\.\.63, got -1\.\.1"),
        (torch.zeros(2, 5, dtype=torch.int64), r"expected units int64 \[3, m\].* got .*\[2, 5\]"),
        (torch.zeros(3, 5), r"expected units int64 \[3, m\].* got torch\.float32"),
    ],
)
def test_units_that_are_none_are_refused(
    vocoder: CausalCodecDecoder, codes: torch.Tensor, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        vocoder.stream().push(codes)


@pytest.mark.parametrize("voice", [{"speaker": "someone"}, {"style": "happy"}])
def test_a_voice_is_refused(
    codec: CausalCodec, vocoder: CausalCodecDecoder, voice: dict[str, str]
) -> None:
    with pytest.raises(InputError, match="gives the voice that its units hold"):
        vocoder.decode([_units(codec, 3)], **voice)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    other = LogMelKMeans.fit(human_waves(4), {"num_units": 8, "iterations": 1}, seed=1)
    with pytest.raises(PluginError, match="renders units of 'causal-codec', got 'logmel-kmeans-"):
        CausalCodecDecoder.for_tokenizer(other)


def test_weights_of_another_shape_are_refused(vocoder: CausalCodecDecoder) -> None:
    shape = replace(vocoder.config.tokenizer, dim=48)
    with pytest.raises(CheckpointError, match="of another architecture"):
        CausalCodecDecoder(replace(vocoder.config, tokenizer=shape), vocoder._tensors)
