"""unit-vocos: exact however it is cut, one voice or many, and soon better for being trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError, FingerprintError, InputError, PluginError
from speechlm.parts import WEIGHTS_NAME
from speechlm.testing import check_vocoder, check_vocoder_stream
from speechlm.units import Units
from speechlm_vocoders.unit_vocos import UnitVocos, UnitVocosConfig
from speechlm_vocoders.vocos_model import VocosModel, VocosModelConfig

NUM_UNITS = 80
RATE, HOP = 8000, 160
MADE_FOR = "some-tokenizer-0123456789abcdef"
SHAPE = VocosModelConfig(
    codebook_sizes=(NUM_UNITS,),
    sample_rate=RATE,
    hop_length=HOP,
    spectral_hop=80,
    fft_size=320,
    dim=16,
    num_unit_layers=2,
    num_layers=2,
    ffn_factor=2,
    kernel=5,
    lookahead=3,
    speaker_dim=0,
)


def _vocoder(block: int = 4, **changes: Any) -> UnitVocos:
    """A small one with random weights, loud enough for differences to show."""
    model = replace(SHAPE, **changes)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in VocosModel(model).state_dict().items()
    }
    config = UnitVocosConfig(tokenizer_fingerprint=MADE_FOR, model=model, block=block)
    return UnitVocos(config, tensors)


def _units(frames: int, seed: int = 0, rows: int = 1) -> Units:
    codes = torch.randint(NUM_UNITS, (rows, frames), generator=torch.Generator().manual_seed(seed))
    return Units(codes=codes, frame_rate=RATE / HOP, fingerprint=MADE_FOR)


def test_it_keeps_every_promise_of_a_vocoder() -> None:
    all_units = replace(_units(0), codes=torch.randperm(NUM_UNITS)[None])
    assert len(all_units.codes.unique()) > 50
    units = [all_units, _units(1, 1), _units(17, 2), _units(8, 3), _units(0, 4)]
    check_vocoder(_vocoder(), units)


def test_every_unit_is_heard() -> None:
    vocoder = _vocoder()
    waves = [
        vocoder.decode([replace(_units(4), codes=torch.full((1, 4), u))])[0] for u in range(60)
    ]
    assert len({tuple(wave.tolist()) for wave in waves}) == 60


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(0, 40),
    cuts=st.lists(st.integers(0, 9), max_size=12),
    block=st.sampled_from([1, 2, 5, 50]),
)
def test_however_cut_the_stream_equals_the_whole(frames: int, cuts: list[int], block: int) -> None:
    vocoder = _vocoder(block)
    units = _units(frames, seed=frames)
    sizes, left = [], frames
    for cut in cuts:
        sizes.append(min(cut, left))
        left -= sizes[-1]
    stream = vocoder.stream()
    parts = [stream.push(piece) for piece in units.codes.split([*sizes, left], dim=1)]
    whole = vocoder.decode([units])[0]
    assert whole.shape == (frames * HOP,)
    assert torch.equal(torch.cat([*parts, stream.finish()]), whole)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_stream_keeps_its_promise_of_time(chunk: int) -> None:
    for block, lookahead in ((1, 2), (4, 5)):
        check_vocoder_stream(_vocoder(block, lookahead=lookahead), _units(64), chunk)


def test_blocks_leave_no_seams() -> None:
    """What comes in blocks is what the network makes of the whole in one piece."""
    vocoder, units = _vocoder(5), _units(62)
    codes = torch.nn.functional.pad(units.codes, (0, 3), value=-1)
    noise = torch.cat(
        [
            torch.randn(1, 5 * HOP, generator=generator)
            for generator in [torch.Generator().manual_seed(0)]
            for _ in range(13)
        ],
        dim=1,
    )
    with torch.no_grad():
        whole, _ = vocoder.model(codes[None], noise)
    expected = whole[0, 3 * HOP :].clamp(-1, 1)
    torch.testing.assert_close(vocoder.decode([units])[0], expected, atol=1e-4, rtol=0)


def test_the_lookahead_is_as_small_as_can_be() -> None:
    """Of what is held back after a unit, the very next sample hangs on the unit to come."""
    vocoder = _vocoder(block=1)
    codes = _units(60).codes
    stream = vocoder.stream()
    given_samples = sum(len(stream.push(codes[:, i : i + 1])) for i in range(40))
    assert given_samples == (40 - vocoder.lookahead) * HOP
    other = codes.clone()
    other[:, 40] = (other[:, 40] + 1) % NUM_UNITS
    both = [vocoder.decode([replace(_units(0), codes=each)])[0] for each in (codes, other)]
    assert torch.equal(both[0][:given_samples], both[1][:given_samples])
    assert not torch.equal(*(wave[given_samples : given_samples + HOP] for wave in both))


def test_two_streams_do_not_touch_each_other() -> None:
    vocoder, codes = _vocoder(), _units(30).codes
    one, other = vocoder.stream(), vocoder.stream()
    first = one.push(codes[:, :11])
    other.push(_units(20, seed=9).codes)
    wave = torch.cat([first, one.push(codes[:, 11:]), one.finish()])
    assert torch.equal(wave, vocoder.decode([_units(30)])[0])


def test_units_with_durations_sound_like_their_frames() -> None:
    vocoder = _vocoder()
    units = replace(_units(9), codes=torch.tensor([[1, 1, 1, 4, 4, 1, 7, 7, 7]]))
    assert torch.equal(vocoder.decode([units.collapse()])[0], vocoder.decode([units])[0])


def test_all_codebooks_are_heard_each_with_its_own_size() -> None:
    vocoder = _vocoder(codebook_sizes=(NUM_UNITS, 7, NUM_UNITS))
    units = _units(19, rows=3)
    units = replace(units, codes=units.codes % torch.tensor([[NUM_UNITS], [7], [NUM_UNITS]]))
    check_vocoder(vocoder, [units])
    whole = vocoder.decode([units])[0]
    for row in range(3):
        other = units.codes.clone()
        other[row, 5] = (other[row, 5] + 1) % 7
        assert not torch.equal(vocoder.decode([replace(units, codes=other)])[0], whole)
    units.codes[1, 3] = 7
    with pytest.raises(InputError, match="expected units within"):
        vocoder.decode([units])


def test_the_voice_changes_the_sound_and_is_each_items_own() -> None:
    vocoder = _vocoder(speaker_dim=6)
    units = [_units(12), _units(20, 1)]
    voices = torch.randn(2, 6, generator=torch.Generator().manual_seed(5))
    together = vocoder.decode(units, voices)
    for item, voice, wave in zip(units, voices, together, strict=True):
        assert torch.equal(vocoder.decode([item], voice)[0], wave)
        assert not torch.equal(vocoder.decode([item])[0], wave)
    assert not torch.equal(vocoder.decode(units[:1], voices[1])[0], together[0])
    mean = vocoder.model.mean_speaker
    assert torch.equal(vocoder.decode(units[:1], mean)[0], vocoder.decode(units[:1])[0])
    stream = vocoder.stream(voices[0])
    assert torch.equal(torch.cat([stream.push(units[0].codes), stream.finish()]), together[0])


@pytest.mark.parametrize(
    ("dim", "speaker", "message"),
    [
        (6, torch.zeros(5), r"expected the embedding of a voice, float32 \[6\], got \[5\]"),
        (6, "anna", r"expected the embedding of a voice, float32 \[6\], got 'anna'"),
        (6, torch.zeros(3, 6), "expected one voice for each of 2 items, got 3"),
        (0, torch.zeros(6), "has one voice; expected no speaker"),
        (0, "anna", "has one voice; expected no speaker"),
    ],
)
def test_a_voice_of_the_wrong_kind_is_refused(
    dim: int, speaker: str | Tensor, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _vocoder(speaker_dim=dim).decode([_units(3), _units(4)], speaker)


def test_a_style_is_refused() -> None:
    with pytest.raises(InputError, match="has one style; expected none, got 'whispered'"):
        _vocoder().stream(style="whispered")


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.tensor([[0, NUM_UNITS]]), r"expected units within 0\.\.79, got 0\.\.80"),
        (torch.tensor([[-1, 3]]), r"expected units within 0\.\.79, got -1\.\.3"),
        (torch.zeros(2, 3, dtype=torch.int64), r"expected units \[1, m\], got \[2, 3\]"),
    ],
)
def test_units_that_cannot_be_are_refused(codes: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _vocoder().stream().push(codes)


def test_units_of_another_tokenizer_are_refused() -> None:
    with pytest.raises(FingerprintError, match=f"made for '{MADE_FOR}', but 'other-1' was given"):
        _vocoder().decode([replace(_units(3), fingerprint="other-1")])


def test_it_must_be_trained() -> None:
    class Tokenizer:
        fingerprint = "units-of-mine"

    with pytest.raises(PluginError, match="must be trained for 'units-of-mine': run 'speechlm"):
        UnitVocos.for_tokenizer(Tokenizer())  # type: ignore[arg-type]


def test_a_truncated_folder_is_refused(tmp_path: Path) -> None:
    _vocoder().save(tmp_path / "part")
    weights = tmp_path / "part" / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        UnitVocos.load(tmp_path / "part")


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    vocoder = _vocoder()
    vocoder.save(tmp_path / "part")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    loaded = UnitVocos.load(tmp_path / "part")
    loaded.decode([_units(5)])
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spectral_hop": 90}, r"spectral_hop must divide the tokenizer's hop_length \(160\)"),
        ({"fft_size": 200}, r"fft_size must be at least 3 times spectral_hop \(80\)"),
        ({"fft_size": 640}, "lookahead must be at least 4 where windows of 640 samples"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"codebook_sizes": ()}, r"expected codebooks with units, or features instead, got \[\]"),
        ({"num_features": 80}, r"expected codebooks with units, or features instead, got \[80\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SHAPE, **change)


def test_a_pulse_train_has_all_harmonics_of_its_pitch_and_no_other_sound() -> None:
    model = _vocoder().model
    pitch = torch.full((1, RATE // 80), 200.0).log()
    wave = model.pulse_train(pitch, None)[0]
    assert wave.square().mean().item() == pytest.approx(1, abs=0.02)
    spectrum = torch.fft.rfft(wave).abs()
    harmonics = torch.arange(200, RATE // 2, 200)
    assert (spectrum[harmonics] / spectrum[200] - 1).abs().max() < 0.01
    others = spectrum.clone()
    others[harmonics] = 0
    assert others.max() < 0.01 * spectrum[200]


def test_windows_and_overlap_add_undo_each_other() -> None:
    model = _vocoder().model
    wave = torch.randn(2, 40 * 80)
    again = model.overlap_add(model.noise_windows(wave, None), None)
    delay = SHAPE.fft_size - SHAPE.spectral_hop
    torch.testing.assert_close(again[:, delay:], wave[:, :-delay], atol=1e-5, rtol=0)
