"""unit-flow: exact however it is cut, led by units, voice and prompt, with either mel vocoder."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError, FingerprintError, InputError, PluginError
from speechlm.testing import check_vocoder, check_vocoder_stream
from speechlm.units import Units
from speechlm_vocoders.flow_model import FlowConfig, FlowModel, flow, flow_times
from speechlm_vocoders.hifigan_model import HiFiGANConfig
from speechlm_vocoders.mel_vocoder import LogMels, MelConfig, read_speecht5_hifigan
from speechlm_vocoders.unit_flow import Prompt, UnitFlow, UnitFlowConfig, mel_vocoder
from speechlm_vocoders.vocos_model import VocosModelConfig

NUM_UNITS = 80
RATE, HOP, MEL_HOP, NUM_MELS = 8000, 160, 80, 12
MADE_FOR = "some-tokenizer-0123456789abcdef"
FLOW = FlowConfig(
    codebook_sizes=(NUM_UNITS,),
    num_mels=NUM_MELS,
    hop_length=HOP,
    mel_hop=MEL_HOP,
    context=4,
    block=5,
    lookahead=2,
    dim=16,
    num_layers=2,
    num_heads=2,
    ffn_factor=2,
    kernel=3,
    speaker_dim=0,
)
VOCOS = VocosModelConfig(
    num_features=NUM_MELS,
    sample_rate=RATE,
    hop_length=MEL_HOP,
    spectral_hop=MEL_HOP,
    fft_size=320,
    dim=16,
    num_unit_layers=1,
    num_layers=1,
    ffn_factor=2,
    kernel=3,
    lookahead=3,
    speaker_dim=0,
)
HIFIGAN = HiFiGANConfig(
    num_units=1,
    embedding_dim=NUM_MELS,
    channels=16,
    upsample_rates=(5, 4, 4),
    upsample_kernel_sizes=(11, 8, 8),
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 3),),
)


def _vocoder(
    *,
    hifigan: HiFiGANConfig | None = None,
    mel_hop: int = MEL_HOP,
    steps: int = 2,
    guidance: float = 0.7,
    **changes: Any,
) -> UnitFlow:
    """A small one with random weights, loud enough for differences to show."""
    mels = MelConfig(sample_rate=RATE, hop_length=mel_hop, window=256, num_mels=NUM_MELS)
    config = UnitFlowConfig(
        tokenizer_fingerprint=MADE_FOR,
        flow=replace(FLOW, mel_hop=mel_hop, **changes),
        mels=mels,
        vocos=VOCOS if hifigan is None else None,
        hifigan=hifigan,
        steps=steps,
        guidance=guidance,
    )
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for prefix, model in (("flow", FlowModel(config.flow)), ("vocoder", mel_vocoder(config))):
        for name, tensor in model.state_dict().items():
            tensors[f"{prefix}.{name}"] = 0.3 * torch.randn(tensor.shape, generator=generator)
            if name in ("deviation", "scale"):
                tensors[f"{prefix}.{name}"] = torch.ones(NUM_MELS)
    return UnitFlow(config, tensors)


def _units(frames: int, seed: int = 0, rows: int = 1) -> Units:
    codes = torch.randint(NUM_UNITS, (rows, frames), generator=torch.Generator().manual_seed(seed))
    return Units(codes=codes, frame_rate=RATE / HOP, fingerprint=MADE_FOR)


def _prompt(frames: int, seed: int = 7) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    return Prompt(
        wave=0.3 * torch.randn(frames * HOP, generator=generator), units=_units(frames, seed)
    )


def test_it_keeps_every_promise_of_a_vocoder() -> None:
    all_units = replace(_units(0), codes=torch.randperm(NUM_UNITS)[None])
    assert len(all_units.codes.unique()) > 50
    units = [all_units, _units(1, 1), _units(17, 2), _units(8, 3), _units(0, 4)]
    check_vocoder(_vocoder(), units)


def test_so_it_does_with_a_hifigan_and_mels_of_another_rate() -> None:
    """4 units of 160 samples are 5 frames of 128: chunks are multiples of 4 units."""
    other = replace(HIFIGAN, upsample_rates=(8, 4, 4), upsample_kernel_sizes=(16, 8, 8))
    vocoder = _vocoder(hifigan=other, mel_hop=128, context=4, block=8, lookahead=4)
    check_vocoder(vocoder, [_units(30), _units(1, 1), _units(17, 2), _units(8, 3)])


def test_every_unit_is_heard() -> None:
    vocoder = _vocoder()
    waves = [
        vocoder.decode([replace(_units(3), codes=torch.full((1, 3), u))])[0] for u in range(60)
    ]
    assert len({tuple(wave.tolist()) for wave in waves}) == 60


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(0, 30),
    cuts=st.lists(st.integers(0, 9), max_size=8),
    lookahead=st.sampled_from([0, 2, 7]),
    hifigan=st.booleans(),
)
def test_however_cut_the_stream_equals_the_whole(
    frames: int, cuts: list[int], lookahead: int, hifigan: bool
) -> None:
    vocoder = _vocoder(lookahead=lookahead, hifigan=HIFIGAN if hifigan else None)
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


@pytest.mark.parametrize("hifigan", [None, HIFIGAN], ids=["vocos", "hifigan"])
@pytest.mark.parametrize("chunk", [1, 64])
def test_the_stream_keeps_its_promise_of_time(chunk: int, hifigan: HiFiGANConfig | None) -> None:
    for lookahead in (0, 4):
        vocoder = _vocoder(lookahead=lookahead, hifigan=hifigan)
        check_vocoder_stream(vocoder, _units(48), chunk)


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


def test_all_codebooks_are_heard() -> None:
    vocoder = _vocoder(codebook_sizes=(NUM_UNITS, NUM_UNITS))
    units = _units(12, rows=2)
    check_vocoder(vocoder, [units])
    for row in range(2):
        other = units.codes.clone()
        other[row, 5] = (other[row, 5] + 1) % NUM_UNITS
        changed = vocoder.decode([replace(units, codes=other)])[0]
        assert not torch.equal(changed, vocoder.decode([units])[0])


def test_the_voice_changes_the_sound_and_is_each_items_own() -> None:
    vocoder = _vocoder(speaker_dim=6)
    units = [_units(12), _units(20, 1)]
    voices = torch.randn(2, 6, generator=torch.Generator().manual_seed(5))
    together = vocoder.decode(units, voices)
    for item, voice, wave in zip(units, voices, together, strict=True):
        assert torch.equal(vocoder.decode([item], voice)[0], wave)
        assert not torch.equal(vocoder.decode([item])[0], wave)
    mean = vocoder.model.mean_speaker
    assert torch.equal(vocoder.decode(units[:1], mean)[0], vocoder.decode(units[:1])[0])


def test_a_prompt_is_what_the_utterance_goes_on_from() -> None:
    vocoder, units = _vocoder(), _units(23)
    plain = vocoder.decode([units])[0]
    prompted = vocoder.decode([units], prompt=_prompt(9))[0]
    assert prompted.shape == plain.shape
    assert not torch.equal(prompted[: 5 * HOP], plain[: 5 * HOP])
    # Only its end is seen: as much as the context holds.
    long, short = _prompt(40), _prompt(40)
    short = Prompt(
        wave=short.wave[20 * HOP :], units=replace(short.units, codes=short.units.codes[:, 20:])
    )
    assert torch.equal(
        vocoder.decode([units], prompt=long)[0], vocoder.decode([units], prompt=short)[0]
    )
    stream = vocoder.stream(prompt=_prompt(9))
    parts = [stream.push(piece) for piece in units.codes.split(2, dim=1)]
    assert torch.equal(torch.cat([*parts, stream.finish()]), prompted)


def test_the_mels_of_a_prompt_stand_where_its_units_do() -> None:
    vocoder = _vocoder()
    prompt = _prompt(3)
    codes, known, absent = vocoder.context(prompt)
    assert torch.equal(codes, torch.cat([torch.tensor([[-1]]), prompt.units.codes], dim=1))
    assert absent[0].tolist() == [True] * 2 + [False] * 6
    mels = vocoder.log_mels(prompt.wave[None])
    assert torch.equal(vocoder.model.unscaled(known[:, 2:]), mels) or torch.allclose(
        vocoder.model.unscaled(known[:, 2:]), mels, atol=1e-5
    )


def test_guidance_goes_further_to_where_units_lead() -> None:
    vocoder = _vocoder(context=4)
    model = vocoder.model
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, model.block_frames, NUM_MELS, generator=generator)
    codes, known, absent = vocoder.context(_prompt(4))
    window = torch.cat([codes, _units(7).codes], dim=1)[None]

    def mels(steps: int, guidance: float) -> Tensor:
        with torch.no_grad():
            return flow(model, noise, known, absent, window, None, steps=steps, guidance=guidance)

    with torch.no_grad():
        told, untold = (
            model(noise, torch.zeros(1), known, absent, window, None, torch.tensor([flag]))
            for flag in (False, True)
        )
    torch.testing.assert_close(mels(1, 0.0), noise + told)
    torch.testing.assert_close(mels(1, 0.5), noise + told + 0.5 * (told - untold))


def test_many_steps_follow_a_curve_that_few_cut_short() -> None:
    """Towards zero, the slower the nearer: exactly, 1/e of the noise is left."""
    noise = torch.randn(1, 5, 3)
    window = (torch.zeros(1, 1, 3), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, 1))
    errors = []
    for steps in (1, 4, 16, 64):
        mels = flow(
            lambda mels, *_: -mels,  # type: ignore[arg-type]
            noise,
            *window,
            None,
            steps=steps,
            guidance=0.0,
        )
        errors.append(float((mels - noise / torch.e).abs().max()))
    assert all(later < 0.4 * earlier for earlier, later in pairwise(errors))


def test_what_is_untold_hangs_on_nothing_that_is_told() -> None:
    model = _vocoder(speaker_dim=6).model
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, model.block_frames, NUM_MELS, generator=generator)
    noise[1] = noise[0]
    known = torch.randn(2, model.context_frames, NUM_MELS, generator=generator)
    codes = torch.cat([_units(11, seed).codes[None] for seed in (1, 2)])
    voices = torch.randn(2, 6, generator=generator)
    absent = torch.zeros(2, model.context_frames, dtype=torch.bool)
    absent[1, :4] = True
    time = torch.full((2,), 0.3)
    for untold in (True, False):
        with torch.no_grad():
            one, other = model(
                noise, time, known, absent, codes, voices, torch.tensor([untold] * 2)
            )
        assert torch.equal(one, other) == untold


def test_the_steps_begin_wide_at_the_mels_end() -> None:
    times = flow_times(6)
    assert times[0] == 0
    assert times[-1].item() == pytest.approx(1)
    assert (times.diff().diff() > 0).all()


def test_a_hifigan_of_transformers_is_read_as_it_is(tmp_path: Path) -> None:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(0)
    peer = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=NUM_MELS,
            upsample_initial_channel=16,
            upsample_rates=[4, 4],
            upsample_kernel_sizes=[8, 8],
            resblock_kernel_sizes=[3, 7],
            resblock_dilation_sizes=[[1, 3], [1, 3]],
            initializer_range=0.2,
        )
    ).eval()
    peer.mean.normal_()
    peer.scale.uniform_(0.5, 2)
    peer.save_pretrained(tmp_path)
    vocoder = read_speecht5_hifigan(str(tmp_path))
    assert (vocoder.mels.hop_length, vocoder.mels.sample_rate) == (16, 16_000)
    mels = torch.randn(23, NUM_MELS)
    with torch.no_grad():
        expected = peer(mels)
        stream = vocoder.stream()
        wave = torch.cat([stream.push(mels[:9], last=False), stream.push(mels[9:], last=True)])
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(wave, expected, atol=1e-5, rtol=0)

    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_speecht5_hifigan(str(tmp_path))
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"upsample_rates"', '"rates"'))
    with pytest.raises(CheckpointError, match="is no SpeechT5HifiGan that can be read"):
        read_speecht5_hifigan(str(tmp_path))


def test_its_mels_are_those_of_speecht5() -> None:
    import numpy as np
    from transformers import SpeechT5FeatureExtractor

    wave = 0.3 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    config = MelConfig(
        sample_rate=16_000, hop_length=256, window=1024, lowest_hz=80, highest_hz=7600, floor=1e-10
    )
    ours = LogMels(config)(wave[None])[0]
    peer = SpeechT5FeatureExtractor()
    theirs = peer(audio_target=wave.numpy(), sampling_rate=16_000)["input_values"][0]
    # At the ends the peer mirrors the recording, where we take silence.
    inner = slice(2, len(ours) - 2)
    assert len(ours) == 32
    np.testing.assert_allclose(ours.numpy()[inner], np.asarray(theirs)[inner], atol=1e-4)


@pytest.mark.parametrize(
    ("dim", "speaker", "message"),
    [
        (6, torch.zeros(5), r"expected the embedding of a voice, float32 \[6\], got \[5\]"),
        (6, "anna", r"expected the embedding of a voice, float32 \[6\], got 'anna'"),
        (6, torch.zeros(3, 6), "expected one voice for each of 2 items, got 3"),
        (0, torch.zeros(6), "takes no speaker: give a prompt to go on from"),
    ],
)
def test_a_voice_of_the_wrong_kind_is_refused(
    dim: int, speaker: str | Tensor, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _vocoder(speaker_dim=dim).decode([_units(3), _units(4)], speaker)


def test_a_style_and_a_prompt_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="has one style; expected none, got 'whispered'"):
        _vocoder().stream(style="whispered")
    prompt = _prompt(5)
    with pytest.raises(InputError, match="a prompt of at least 1 units, got 5 units and 100"):
        _vocoder().stream(prompt=replace(prompt, wave=prompt.wave[:100]))
    foreign = replace(prompt, units=replace(prompt.units, fingerprint="other-1"))
    with pytest.raises(FingerprintError, match="'other-1' was given"):
        _vocoder().stream(prompt=foreign)


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
        UnitFlow.for_tokenizer(Tokenizer())  # type: ignore[arg-type]


def test_a_vocoder_of_other_mels_is_refused() -> None:
    other = replace(HIFIGAN, upsample_rates=(4, 4, 4), upsample_kernel_sizes=(8, 8, 8))
    with pytest.raises(ConfigError, match="renders frames of 64 samples, but mels have 80"):
        _vocoder(hifigan=other)
    with pytest.raises(ConfigError, match="expected one vocoder of mels"):
        replace(_vocoder().config, vocos=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 18}, r"dim \(18\) must be a multiple of twice num_heads \(2\)"),
        ({"kernel": 4}, r"kernel \(4\) odd"),
        ({"mel_hop": 128}, "block must be a multiple of 4, as only so many units of 160 samples"),
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"lookahead": -1}, "lookahead must be at least 0, got -1"),
        ({"codebook_sizes": (0,)}, r"expected codebooks with units, got \[0\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(FLOW, **change)
