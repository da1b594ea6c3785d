"""unit-flow in training: both losses fall, and what is trained is what the part renders."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import CheckpointError, ConfigError, PluginError
from speechlm.protocols import SegmentBatch
from speechlm.testing import check_vocoder
from speechlm.units import Units
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_vocoders.flow_training import UnitFlowTraining
from speechlm_vocoders.unit_flow import UnitFlow

SMALL: dict[str, Any] = {
    "dim": 32,
    "num_layers": 2,
    "num_heads": 2,
    "vocos_dim": 32,
    "vocos_layers": 1,
    "steps": 4,
}
FRAMES = 40


@pytest.fixture(scope="module")
def waves() -> list[Tensor]:
    clips = list(human_clips("prompts").values())[:4]
    return [load_audio(clip.path, 16_000) for clip in clips]


@pytest.fixture(scope="module")
def tokenizer(waves: list[Tensor]) -> LogMelKMeans:
    return LogMelKMeans.fit(waves, {"num_units": 60, "iterations": 2}, seed=1)


@pytest.fixture(scope="module")
def batch(tokenizer: LogMelKMeans, waves: list[Tensor]) -> SegmentBatch:
    """Pieces of recordings; the last is the end of one, and zero beyond it."""
    hop, start = tokenizer.hop_length, 10
    pieces = torch.stack([wave[start * hop : (start + FRAMES) * hop] for wave in waves])
    pieces[-1, 4000:] = 0
    codes = [tokenizer.encode(wave[None])[0].codes for wave in waves]
    return SegmentBatch(
        waves=pieces,
        lengths=torch.tensor([FRAMES * hop] * (len(waves) - 1) + [4000]),
        number=0,
        units=torch.stack([code[:, start : start + FRAMES] for code in codes]),
    )


def _training(tokenizer: LogMelKMeans, **options: Any) -> UnitFlowTraining:
    return UnitFlow.training(tokenizer, SMALL | options, seed=3)


def test_the_losses_fall_and_the_part_renders_what_was_trained(
    tokenizer: LogMelKMeans, batch: SegmentBatch
) -> None:
    training = _training(tokenizer)
    assert training.needs == {"units"}
    assert (training.sample_rate, training.hop_length) == (16_000, 320)
    training(batch)
    before = training.measure(batch)
    assert before.keys() == {"loss", "flow", "mel", "pitch"}
    optimizer = torch.optim.Adam(training.parameters(), lr=5e-3)
    for step in range(60):
        optimizer.zero_grad()
        loss, _ = training(replace(batch, number=step))
        loss.backward()
        assert all(p.grad is not None for p in training.parameters())
        optimizer.step()
    after = training.measure(batch)
    assert after["flow"] < 0.8 * before["flow"]
    assert after["mel"] < 0.75 * before["mel"]
    assert torch.equal(after["loss"], training.measure(batch)["loss"])

    part = training.part()
    assert part.tokenizer_fingerprint == tokenizer.fingerprint
    assert batch.units is not None
    units = [
        Units(codes=codes, frame_rate=50.0, fingerprint=tokenizer.fingerprint)
        for codes in batch.units[:3]
    ]
    check_vocoder(part, units)
    # Its mels are nearer to those of its own recording than to those of the others.
    heard = training.log_mels(torch.stack(part.decode(units)))
    said = training.log_mels(batch.waves[:3])
    apart = (heard[:, None] - said[None]).square().mean(dim=(2, 3))
    assert apart.argmin(dim=1).tolist() == [0, 1, 2]


def test_a_chunk_is_told_the_mels_before_it_and_none_behind_it(
    tokenizer: LogMelKMeans, batch: SegmentBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = _training(tokenizer, context_noise=0.0, untold=0.0, guidance=0.0)
    training(batch)
    seen: dict[str, Tensor] = {}

    def spy(
        noisy: Tensor,
        time: Tensor,
        known: Tensor,
        absent: Tensor,
        codes: Tensor,
        speaker: Tensor | None,
        untold: Tensor,
    ) -> Tensor:
        seen.update(known=known, absent=absent, codes=codes)
        assert speaker is None
        assert not untold.any()
        return torch.zeros_like(noisy, requires_grad=True)

    monkeypatch.setattr(training.flow, "forward", spy)
    training.measure(batch)
    assert batch.units is not None
    mels = training.flow.scaled(training.log_mels(batch.waves))
    context, frames = training.config.flow.context, training.flow.context_frames
    for known, absent, codes in zip(seen["known"], seen["absent"], seen["codes"], strict=True):
        said = codes[0, :context]
        start = int((said >= 0).sum())
        rows = [
            row
            for row in range(3)
            for first in [start if start < context else None]
            if torch.equal(batch.units[row, 0, : first or 0], said[context - start :])
        ]
        count = frames * start // context
        assert absent.sum() == frames - count
        if start < context and rows:
            assert any(torch.equal(known[frames - count :], mels[row, :count]) for row in rows)


def test_what_lies_beyond_a_recordings_end_counts_for_nothing(
    tokenizer: LogMelKMeans, batch: SegmentBatch
) -> None:
    assert batch.units is not None
    training = _training(tokenizer)
    noisy = batch.waves.clone()
    noisy[-1, 4000:] = 0.5
    units = batch.units.clone()
    units[-1, :, 13:] = 5
    other = replace(batch, waves=noisy, units=units)
    assert torch.equal(training.measure(batch)["loss"], training.measure(other)["loss"])


def test_a_short_segment_is_one_chunk(tokenizer: LogMelKMeans, batch: SegmentBatch) -> None:
    assert batch.units is not None
    training = _training(tokenizer)
    short = replace(
        batch,
        waves=batch.waves[:, : 7 * 320],
        units=batch.units[..., :7],
        lengths=batch.lengths.clamp(max=7 * 320),
    )
    loss, _ = training(short)
    assert torch.isfinite(loss)


def test_it_trains_in_mixed_precision(tokenizer: LogMelKMeans, batch: SegmentBatch) -> None:
    training = _training(tokenizer)
    training(batch)
    torch.manual_seed(0)
    exact, _ = training(batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = training(batch)
    loss.backward()
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)


def test_mels_are_scaled_by_the_first_batch_and_where_no_voice_is_asked_for_the_mean_speaks(
    tokenizer: LogMelKMeans, batch: SegmentBatch
) -> None:
    training = _training(tokenizer, speaker_dim=4)
    assert training.needs == {"units", "speaker"}
    voices = torch.randn(2, len(batch.waves), 4)
    training(replace(batch, speakers=voices[0]))
    mels = training.log_mels(batch.waves[:-1])
    mels = torch.cat([mels.flatten(0, 1), training.log_mels(batch.waves[-1:])[0, :25]])
    torch.testing.assert_close(training.flow.mean, mels.mean(dim=0), atol=1e-4, rtol=0)
    torch.testing.assert_close(training.flow.deviation, mels.std(dim=0), atol=1e-4, rtol=0)
    again = _training(tokenizer, speaker_dim=4)
    again.load_state_dict(training.state_dict())
    again(replace(batch, waves=2 * batch.waves, speakers=voices[1]))
    assert torch.equal(again.flow.mean, training.flow.mean)
    expected = voices.reshape(-1, 4).mean(dim=0)
    torch.testing.assert_close(again.part().model.mean_speaker, expected)


def test_with_a_hifigan_read_only_the_flow_is_trained_and_the_part_holds_both(
    tokenizer: LogMelKMeans, batch: SegmentBatch, tmp_path: Path
) -> None:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(0)
    config = SpeechT5HifiGanConfig(
        upsample_initial_channel=32, resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]]
    )
    SpeechT5HifiGan(config).save_pretrained(tmp_path / "peer")
    training = _training(tokenizer, mel_vocoder=str(tmp_path / "peer"))
    flow = training.config.flow
    assert (flow.mel_hop, flow.context, flow.block, flow.lookahead) == (256, 16, 16, 4)
    loss, terms = training(batch)
    assert terms.keys() == {"flow"}
    loss.backward()
    assert all(name.startswith("flow.") for name, _ in training.named_parameters())
    part = training.part()
    units = Units(
        codes=tokenizer.encode(batch.waves[:1])[0].codes[:, :21],
        frame_rate=50.0,
        fingerprint=tokenizer.fingerprint,
    )
    check_vocoder(part, [units])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 3}, "unknown key 'vocoder.options.dims'; did you mean"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"untold": 1.0}, "untold must be at least 0 and below 1, got 1.0"),
        ({"untold": 0.0}, "guidance needs chunks trained untold; set untold above 0"),
        ({"guidance": -1.0}, "guidance must be at least 0, got -1.0"),
        ({"num_heads": 5}, "dim (32) must be a multiple of twice num_heads (5)"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tokenizer: LogMelKMeans, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        _training(tokenizer, **options)


def test_a_mel_vocoder_that_is_not_there_is_named(tokenizer: LogMelKMeans, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no config"):
        _training(tokenizer, mel_vocoder=str(tmp_path))


def test_units_that_do_not_last_one_frame_are_refused() -> None:
    class Merged:
        variable_rate = True
        fingerprint = "merged-units"

    with pytest.raises(PluginError, match="do not last one frame each: train the vocoder for"):
        UnitFlow.training(Merged(), {}, seed=0)  # type: ignore[arg-type]
