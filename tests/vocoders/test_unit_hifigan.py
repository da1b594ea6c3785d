"""unit-hifigan: exact however it is cut, whatever shares its batch, and clear about its inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechlm.errors import ConfigError, FingerprintError, InputError, PluginError
from speechlm.testing import check_vocoder, check_vocoder_stream
from speechlm.units import Units
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_vocoders.hifigan_model import HiFiGAN, HiFiGANConfig
from speechlm_vocoders.unit_hifigan import UnitHiFiGAN, UnitHiFiGANConfig

NUM_UNITS = 80
RATE, HOP = 8000, 160
MADE_FOR = "some-tokenizer-0123456789abcdef"


def _vocoder(**changes: Any) -> UnitHiFiGAN:
    """A small one with random weights, loud enough for differences to show."""
    settings = {
        name: changes.pop(name)
        for name in ("speaker_names", "style_names", "predict_durations", "block")
        if name in changes
    }
    shape = {
        "num_units": NUM_UNITS,
        "embedding_dim": 12,
        "condition_dim": 6,
        "channels": 16,
        "upsample_rates": (8, 5, 4),
        "upsample_kernel_sizes": (16, 11, 4),
        "resblock_kernel_sizes": (3, 5),
        "resblock_dilation_sizes": ((1, 3), (2,)),
    }
    model = HiFiGANConfig(**{**shape, **changes})
    config = UnitHiFiGANConfig(
        tokenizer_fingerprint=MADE_FOR, sample_rate=RATE, model=model, **{"block": 4, **settings}
    )
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = HiFiGAN(model)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if not name.startswith("durations"):
                scale = 0.3 if tensor.ndim > 1 else 0.1
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
            elif name == "durations.head.weight":
                tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
            elif name == "durations.head.bias":
                tensor.fill_(1.0)
    return UnitHiFiGAN(config, network)


def _units(frames: int, seed: int = 0, rows: int = 1) -> Units:
    codes = torch.randint(NUM_UNITS, (rows, frames), generator=torch.Generator().manual_seed(seed))
    return Units(codes=codes, frame_rate=RATE / HOP, fingerprint=MADE_FOR)


def _one_piece(vocoder: UnitHiFiGAN, codes: Tensor, **conditions: Tensor) -> Tensor:
    with torch.no_grad():
        wave: Tensor = vocoder.model(vocoder.model.embed(codes[None], **conditions))
    return wave[0]


def test_it_keeps_every_promise_of_a_vocoder() -> None:
    all_units = replace(_units(0), codes=torch.randperm(NUM_UNITS)[None])
    units = [all_units, _units(1, 1), _units(17, 2), _units(8, 3), _units(0, 4)]
    assert len(all_units.codes.unique()) > 50
    check_vocoder(_vocoder(block=8), units)


def test_every_unit_is_heard() -> None:
    vocoder = _vocoder()
    waves = [
        vocoder.decode([replace(_units(3), codes=torch.full((1, 3), u))])[0] for u in range(60)
    ]
    assert len({tuple(wave.tolist()) for wave in waves}) == 60


def test_the_batch_does_not_matter_to_the_bit() -> None:
    vocoder = _vocoder()
    units = [_units(length, length) for length in (33, 5, 61)]
    for item, wave in zip(units, vocoder.decode(units), strict=True):
        assert torch.equal(vocoder.decode([item])[0], wave)


@settings(max_examples=25, deadline=None)
@given(
    frames=st.integers(0, 40),
    cuts=st.lists(st.integers(0, 9), max_size=12),
    block=st.sampled_from([1, 2, 7, 50]),
)
def test_however_cut_the_stream_equals_the_whole(frames: int, cuts: list[int], block: int) -> None:
    vocoder = _vocoder(block=block)
    codes = _units(frames, seed=frames).codes
    sizes, left = [], frames
    for cut in cuts:
        sizes.append(min(cut, left))
        left -= sizes[-1]
    stream = vocoder.stream()
    parts = [stream.push(piece) for piece in codes.split([*sizes, left], dim=1)]
    whole = vocoder.decode([_units(frames, seed=frames)])[0]
    assert torch.equal(torch.cat([*parts, stream.finish()]), whole)
    if frames:
        # Blocks leave no seams: what comes in blocks is what is computed in one piece.
        torch.testing.assert_close(whole, _one_piece(vocoder, codes), atol=1e-5, rtol=0)


def test_two_streams_do_not_touch_each_other() -> None:
    vocoder, codes = _vocoder(), _units(30).codes
    one, other = vocoder.stream(), vocoder.stream()
    first = one.push(codes[:, :11])
    other.push(_units(20, seed=9).codes)
    wave = torch.cat([first, one.push(codes[:, 11:]), one.finish()])
    assert torch.equal(wave, vocoder.decode([_units(30)])[0])


def test_the_lookahead_is_as_small_as_can_be() -> None:
    """Of what is held back after a block, the first sample does hang on what comes next."""
    vocoder = _vocoder(block=1)
    codes = _units(60).codes
    stream = vocoder.stream()
    given = sum(len(stream.push(codes[:, i : i + 1])) for i in range(40))
    changed = codes.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % NUM_UNITS
    same = _one_piece(vocoder, codes) == _one_piece(vocoder, changed)
    assert given >= (40 - vocoder.lookahead) * HOP
    assert same[: given - HOP].all()
    assert not same[given : given + 4 * HOP].all()


def test_units_with_durations_sound_like_their_frames() -> None:
    vocoder = _vocoder()
    units = replace(_units(9), codes=torch.tensor([[1, 1, 1, 4, 4, 1, 7, 7, 7]]))
    assert torch.equal(vocoder.decode([units.collapse()])[0], vocoder.decode([units])[0])


def test_side_codebooks_and_a_pitch_contour_shape_the_sound_and_stream_exactly() -> None:
    sided = _vocoder(side_sizes=(NUM_UNITS, NUM_UNITS))
    check_vocoder(sided, [_units(19, rows=3), _units(6, 1, rows=3)])
    other = _units(19, rows=3).codes.clone()
    other[2, 5] = (other[2, 5] + 1) % NUM_UNITS
    changed = sided.decode([replace(_units(19, rows=3), codes=other)])[0]
    assert not torch.equal(changed, sided.decode([_units(19, rows=3)])[0])

    pitched = _vocoder(
        raw_f0=True, repeats=2, upsample_rates=(5, 4, 4), upsample_kernel_sizes=(11, 8, 4)
    )
    units, f0 = _units(21), torch.rand(42)
    whole = pitched.decode([units], f0=[f0])[0]
    assert len(whole) == 21 * HOP
    stream = pitched.stream()
    parts = [
        stream.push(codes, contour)
        for codes, contour in zip(units.codes.split(5, dim=1), f0.split(10), strict=True)
    ]
    assert torch.equal(torch.cat([*parts, stream.finish()]), whole)
    torch.testing.assert_close(
        whole, _one_piece(pitched, units.codes, f0=f0[None]), atol=1e-5, rtol=0
    )
    assert not torch.equal(pitched.decode([units], f0=[f0.flip(0)])[0], whole)
    with pytest.raises(InputError, match=r"pitch contour .* float32 \[42\], got none"):
        pitched.decode([units])
    with pytest.raises(InputError, match=r"float32 \[42\], got \[41\]"):
        pitched.decode([units], f0=[f0[1:]])
    with pytest.raises(InputError, match="one f0 for each of 1 items, got 2"):
        pitched.decode([units], f0=[f0, f0])
    with pytest.raises(InputError, match="takes no pitch contour"):
        _vocoder().decode([units], f0=[f0])


def test_voices_and_styles_go_by_name_and_the_first_is_the_default() -> None:
    vocoder = _vocoder(
        num_speakers=3, speaker_names=("ann", "bob", "cyd"), num_styles=2, style_names=("a", "b")
    )
    units = [_units(12)]
    default = vocoder.decode(units)[0]
    assert torch.equal(vocoder.decode(units, speaker="ann", style="a")[0], default)
    others = [vocoder.decode(units, speaker="bob"), vocoder.decode(units, style="b")]
    assert not any(torch.equal(other[0], default) for other in others)
    stream = vocoder.stream(speaker="bob")
    assert torch.equal(torch.cat([stream.push(units[0].codes), stream.finish()]), others[0][0])
    with pytest.raises(InputError, match="unknown speaker 'dan'; known: ann, bob, cyd"):
        vocoder.decode(units, speaker="dan")
    with pytest.raises(InputError, match="unknown style 'c'; known: a, b"):
        vocoder.stream(style="c")
    with pytest.raises(InputError, match="no embedding of a voice; known: ann, bob, cyd"):
        vocoder.decode(units, speaker=torch.ones(4))
    with pytest.raises(InputError, match=r"unknown style 'a'; .* has but one style"):
        _vocoder().decode(units, style="a")


def test_a_long_table_is_not_listed_in_full() -> None:
    names = tuple(map(str, range(200)))
    with pytest.raises(InputError, match=r"known: 0, 1, .*, 19 … \(200 in all\)$"):
        _vocoder(num_speakers=200, speaker_names=names).stream(speaker="x")


def test_voices_by_embedding() -> None:
    vocoder = _vocoder(speaker_dim=5)
    units = [_units(12), _units(7, 1)]
    voices = torch.randn(2, 5)
    together = vocoder.decode(units, speaker=voices)
    for item, voice, wave in zip(units, voices, together, strict=True):
        assert torch.equal(vocoder.decode([item], speaker=voice)[0], wave)
    assert not torch.equal(vocoder.decode(units[:1], speaker=voices[1])[0], together[0])
    with pytest.raises(InputError, match=r"needs a voice: give .* float32 \[5\]"):
        vocoder.decode(units)
    with pytest.raises(InputError, match=r"as an embedding, float32 \[5\], got the name 'ann'"):
        vocoder.decode(units, speaker="ann")
    with pytest.raises(InputError, match=r"float32 \[5\], got torch.float32 \[4\]"):
        vocoder.decode(units, speaker=torch.ones(4))
    with pytest.raises(InputError, match="one voice for each of 2 items, got 3"):
        vocoder.decode(units, speaker=torch.ones(3, 5))
    vocoder.model.mean_speaker.fill_(0.5)
    assert torch.equal(
        vocoder.decode(units)[0], vocoder.decode(units, speaker=torch.full((5,), 0.5))[0]
    )


def test_predicted_durations_stretch_units_and_stream_exactly(tmp_path: Path) -> None:
    vocoder = _vocoder(duration_dim=8, predict_durations=True)
    units = _units(70)
    lasting = vocoder.with_durations(units)
    assert lasting.durations is not None
    assert torch.equal(lasting.codes, units.collapse().codes)
    assert lasting.durations.min() >= 1
    assert len(lasting.durations.unique()) > 2, "the test's weights predict nothing"
    with torch.no_grad():
        embedded = vocoder.model.embeddings[0](lasting.codes[0]).T[None]
        logs = vocoder.model.durations(embedded)[0]
    assert torch.equal(lasting.durations, torch.round(logs.exp() - 1).clamp(min=1).long())
    wave = vocoder.decode([units])[0]
    assert len(wave) == lasting.num_frames * HOP
    assert torch.equal(wave, vocoder.decode([lasting])[0])
    for chunk in (1, 6, 70):
        check_vocoder_stream(vocoder, units, chunk)
    check_vocoder(vocoder, [lasting, lasting])
    assert vocoder.decode([_units(0)])[0].shape == (0,)
    assert torch.equal(vocoder.with_durations(lasting).durations, lasting.durations)
    with pytest.raises(InputError, match="has no duration predictor"):
        _vocoder().with_durations(units)
    vocoder.save(tmp_path / "part")
    loaded = UnitHiFiGAN.load(tmp_path / "part")
    assert loaded.config == vocoder.config
    assert torch.equal(loaded.decode([units])[0], wave)


def test_merged_repeats_without_durations_last_as_the_merged_would() -> None:
    vocoder = _vocoder(duration_dim=8, predict_durations=True)
    units = replace(_units(4), codes=torch.tensor([[5, 5, 5, 9, 9, 5]]))
    merged = replace(units, codes=torch.tensor([[5, 9, 5]]))
    assert torch.equal(vocoder.decode([units])[0], vocoder.decode([merged])[0])


def test_other_units_are_refused() -> None:
    vocoder = _vocoder()
    foreign = replace(_units(5), fingerprint="other-fedcba9876543210")
    with pytest.raises(FingerprintError, match=r"made for 'some-tokenizer-.*' was given"):
        vocoder.decode([_units(5), foreign])
    with pytest.raises(InputError, match=r"expected units within 0\.\.79, got 3\.\.80"):
        vocoder.stream().push(torch.tensor([[3, 80]]))
    with pytest.raises(InputError, match=r"expected units within 0\.\.79, got -1\.\.3"):
        vocoder.decode([replace(_units(2), codes=torch.tensor([[-1, 3]]))])
    with pytest.raises(InputError, match=r"expected units \[1, m\], .* got \[2, 5\]"):
        vocoder.decode([_units(5, rows=2)])


def test_it_is_not_made_for_a_tokenizer_without_training() -> None:
    tokenizer = LogMelKMeans.fit([torch.randn(16_000)], {"num_units": 10, "iterations": 1}, seed=0)
    with pytest.raises(PluginError, match=r"train\.part=vocoder vocoder\.name=unit-hifigan"):
        UnitHiFiGAN.for_tokenizer(tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upsample_kernel_sizes": (16, 11)}, "one upsample_kernel_sizes for each"),
        ({"upsample_kernel_sizes": (15, 11, 4)}, "by 8 must have a kernel size from 8 to 24"),
        ({"channels": 12}, r"channels must be a multiple of 2 \*\* 3"),
        ({"resblock_kernel_sizes": (3, 4)}, "kernel sizes must be odd, got 4"),
        ({"resblock_dilation_sizes": ((1,),)}, "for each of resblock_kernel_sizes"),
        ({"num_speakers": 2, "speaker_dim": 4}, "expected num_speakers or speaker_dim"),
        ({"num_styles": 2}, "expected 2 style names, one each, got 0"),
        ({"predict_durations": True}, "needs a duration predictor"),
        ({"predict_durations": True, "duration_dim": 4, "raw_f0": True}, "pitch contour says"),
        ({"block": 0}, "block must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _vocoder(**changes)
