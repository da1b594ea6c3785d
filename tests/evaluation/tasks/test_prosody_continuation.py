"""Continuations are compared with what was recorded by length and pitch of units."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_speech import write_corpus

from speechlm import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.prompts import Protocol
from speechlm.evaluation.tasks.prosody_continuation import measure, prosody_rows, teacher_forced
from speechlm.model.likelihood import score_recordings

SHORT = Protocol(
    prompt_s=0.8, least_s=1.2, continuation_s=0.4, sampling=SamplingConfig(temperature=1.0)
)


@pytest.fixture
def job(bundle_folder: Path, tmp_path: Path) -> Job:
    return Job(
        name="prosody",
        system=System(str(bundle_folder)),
        data=write_corpus(tmp_path / "corpus"),
        output=tmp_path / "out",
        seed=1,
    )


def test_all_figures_are_there_and_go_on_after_a_kill(job: Job) -> None:
    rows = list(prosody_rows(job, SHORT, 3))
    found = {row.variant: row for row in rows}
    assert set(found) == {
        "empty-output",
        "teacher-forced/nll-unit",
        "duration-mae-min-ms",
        "log-f0-mae-min",
        *(
            f"{whose}{name}"
            for whose in ("", "recorded/")
            for name in (
                "duration-std-ms",
                "log-f0-std",
                "duration-correlation",
                "log-f0-correlation",
            )
        ),
    }
    for name in ("duration-mae-min-ms", "recorded/duration-std-ms", "recorded/log-f0-std"):
        row = found[name]
        assert row.value is not None
        assert row.value > 0
        assert row.ci95 is not None
        assert row.ci95[0] <= row.value <= row.ci95[1]
    journal = job.output / "scores" / "prosody.jsonl"
    kept = journal.read_bytes()
    journal.write_bytes(b"\n".join(kept.split(b"\n")[:3]) + b"\n{")
    assert [row.to_json() for row in prosody_rows(job, SHORT, 3)] == [row.to_json() for row in rows]
    assert journal.read_bytes() == kept


def test_more_samples_come_no_further_from_what_was_said(job: Job) -> None:
    def least(samples: int) -> dict[str, tuple[float, float]]:
        one = replace(job, output=job.output / str(samples))
        list(prosody_rows(one, replace(SHORT, most=2), samples))
        lines = (one.output / "scores" / "prosody.jsonl").read_text().splitlines()[1:]
        items = [json.loads(line) for line in lines]
        return {item["id"]: item["figures"]["duration-mae-min-ms"] for item in items}

    few, many = least(1), least(3)
    assert all(many[name][0] <= few[name][0] for name in few)
    assert many != few


def test_the_pitch_of_a_tone_is_found_in_its_units(model: SpeechLM) -> None:
    time_s = torch.arange(16_000) / 16_000
    wave = sum(torch.sin(2 * torch.pi * 150 * k * time_s) / k for k in range(1, 6))
    found = measure(model, 0.1 * wave, 16_000)
    assert np.nanmedian(found.log_f0) == pytest.approx(np.log(150), abs=0.01)
    assert found.durations_s.sum() == pytest.approx(1.0, abs=0.05)


def test_a_recordings_own_units_are_as_probable_as_the_lm_says(model: SpeechLM) -> None:
    wave = torch.randn(16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    rate = model.tokenizer.sample_rate
    (likely,) = score_recordings(model.lm, [model.encode(wave, rate)])
    assert teacher_forced(model, wave) == {
        "teacher-forced/nll-unit": pytest.approx((-likely.total, likely.num_units))
    }


def test_a_recording_that_cannot_be_used_is_counted(job: Job) -> None:
    assert job.data is not None
    (job.data / "r1.flac").write_bytes(b"no sound")
    failed = [row for row in prosody_rows(job, SHORT, 1) if row.subset == "failed"]
    assert [(row.n, row.error[:15]) for row in failed] == [(1, "1 of 4, the fir")]
