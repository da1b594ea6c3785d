from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small_bundle import question
from small_duplex import small_duplex

from speechlm.dialogue.settings import SessionSettings
from speechlm.dialogue.simulate import simulate
from speechlm.dialogue.users import RecordedUser
from speechlm.evaluation.interaction.voice_activity import load_channels
from speechlm.evaluation.tasks.full_duplex import run_full_duplex
from speechlm.evaluation.tasks.job import Job, System


def test_a_duplex_bundle_hears_a_benchmark_live(tmp_path: Path) -> None:
    pytest.importorskip("silero_vad")
    pytest.importorskip("pocketsphinx")
    bundle = small_duplex()
    bundle.save_pretrained(tmp_path / "bundle")
    sample = tmp_path / "data" / "turn_taking" / "1"
    sample.mkdir(parents=True)
    said, rate = soundfile.read(question(), dtype="float32")
    soundfile.write(sample / "input.wav", np.concatenate([said, np.zeros(rate // 2)]), rate)
    times = [len(said) / rate, len(said) / rate + 0.1]
    (sample / "turn_taking.json").write_text(json.dumps([{"timestamp": times}]))
    system = System(str(tmp_path / "bundle"), bundle)
    job = Job(name="fdb", system=system, data=tmp_path / "data", output=tmp_path / "out", seed=5)
    rows = list(run_full_duplex(job))
    assert not any(row.error for row in rows)
    folder = tmp_path / "out" / "outputs" / "fdb" / "turn_taking" / "1"
    output, rate = soundfile.read(folder / "output.wav", dtype="float32")
    settings = SessionSettings(input_rate=16_000, output_rate=16_000, seed=5)
    user = RecordedUser(load_channels(sample / "input.wav").mean(dim=0))
    expected = simulate(bundle, user, settings)
    assert rate == 16_000
    assert np.abs(output - expected.output.numpy()).max() <= 1 / 32767
    assert torch.count_nonzero(expected.output)
    assert json.loads((folder / "events.json").read_text()) == expected.events
