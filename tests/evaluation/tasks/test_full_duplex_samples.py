"""Full-Duplex-Bench's folders: of recordings, and answered by a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechlm.data.human import human_clips
from speechlm.errors import CorpusError, InputError
from speechlm.evaluation.tasks import latency
from speechlm.evaluation.tasks.full_duplex import read_samples, run_full_duplex
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.latency import run_latency
from speechlm.evaluation.tasks.mini import dialogues
from speechlm.evaluation.tasks.mini.dialogues import make_full_duplex, run_mini_full_duplex
from speechlm.evaluation.tasks.results import Result

RATE = 16_000


def place(duration_s: float, *starts_s: float) -> np.ndarray[Any, Any]:
    """A recorded word at some times."""
    wave = np.zeros(round(duration_s * RATE), np.float32)
    word, _ = soundfile.read(human_clips("answers")["monday"].path, dtype="float32")
    for start_s in starts_s:
        first = round(start_s * RATE)
        wave[first : first + len(word)] = word
    return wave


def write_sample(
    here: Path, user: np.ndarray[Any, Any], model: np.ndarray[Any, Any] | None, **annotations: Any
) -> None:
    here.mkdir(parents=True)
    soundfile.write(here / "input.wav", user, RATE)
    if model is not None:
        soundfile.write(here / "output.wav", model, RATE)
    for name, told in annotations.items():
        (here / f"{name}.json").write_text(json.dumps(told))


def measure(system: Path, data: Path, output: Path) -> dict[str, Result]:
    job = Job(name="fdb", system=System(str(system)), data=data, output=output, seed=1)
    return {row.name.removeprefix("fdb/"): row for row in run_full_duplex(job)}


def said(*times: tuple[float, float]) -> dict[str, Any]:
    return {"text": "", "chunks": [{"text": "a", "timestamp": list(time)} for time in times]}


def test_slips_of_the_published_scoring_are_mended(tmp_path: Path) -> None:
    pytest.importorskip("silero_vad")
    data = tmp_path / "v1"
    answer_after = said((4.0, 5.5))
    pause = [{"text": "[PAUSE]", "timestamp": [1.5, 2.0]}]
    write_sample(
        data / "pause" / "1", place(6, 0.5, 2.5), place(6, 4.0), pause=pause, output=answer_after
    )
    end = [{"text": "", "timestamp": [3.0, 3.2]}]
    early = said((2.0, 3.5))
    write_sample(data / "turn" / "1", place(6, 2.0), place(6, 4.0), turn_taking=end, output=early)
    cut = [{"context": "x", "interrupt": "y", "timestamp": [2.0, 2.8]}]
    goes_on = said((1.0, 1.6), (1.7, 2.5))
    write_sample(
        data / "cut" / "1", place(6, 0.2, 2.0), place(6, 1.6, 4.0), interrupt=cut, output=goes_on
    )
    overlap = {"timestamps": [2.0, 2.8], "context_text": "x", "current_turn_text": "y"}
    write_sample(data / "side" / "1", place(6, 2.0), place(6, 1.6, 4.0), metadata=overlap)
    rows = measure(data, data, tmp_path / "out")
    assert (rows["pause/fdb_tor"].value, rows["pause/tor"].value) == (100, 0)
    assert rows["pause/speaks"].value == 0
    assert rows["turn/fdb_latency_s"].value == 0
    assert rows["turn/latency_s"].value == pytest.approx(-1)
    assert rows["turn/speaks"].value == 100
    assert (rows["cut/fdb_tor"].value, rows["cut/tor"].value) == (100, 0)
    assert "cut/latency_s" not in rows
    for name in ("cut", "side"):
        assert 0 < (rows[f"{name}/stop_latency_s"].value or 0) < 0.6
        assert rows[f"{name}/response_latency_s"].value == pytest.approx(1.2, abs=0.15)
    assert rows["side/fdb_stop_latency_s"].asr == "pocketsphinx"
    assert rows["cut/tor"].asr is None
    assert not (data / "side" / "1" / "output.json").exists()


def test_bad_samples_are_told(tmp_path: Path) -> None:
    pytest.importorskip("silero_vad")
    end = [{"text": "", "timestamp": [1.0, 1.2]}]
    write_sample(tmp_path / "turn" / "2", place(2, 0.2), None, turn_taking=end)
    write_sample(
        tmp_path / "turn" / "10", place(2, 0.2), place(2), turn_taking=end, output={"chunks": [1]}
    )
    write_sample(tmp_path / "backchannel" / "1", place(2, 0.2), place(2), output=said())
    rows = measure(tmp_path, tmp_path, tmp_path / "out")
    assert [one.id for one in read_samples(tmp_path)] == ["backchannel/1", "turn/2", "turn/10"]
    assert rows["turn/failed"].n == 2
    assert "output.wav: no such file" in rows["turn/failed"].error
    assert rows["backchannel/backchannels_per_min"].value == 0
    assert "expected icc_gt_distribution.json" in rows["backchannel/jsd"].error
    with pytest.raises(CorpusError, match=r"expected a folder a sample, input\.wav in each"):
        read_samples(tmp_path / "out")
    write_sample(tmp_path / "bad" / "1", place(1), None, pause=[])
    with pytest.raises(CorpusError, match=r"pause\.json: expected the times of a pause"):
        read_samples(tmp_path)
    (tmp_path / "bad" / "1" / "pause.json").unlink()
    with pytest.raises(CorpusError, match=r"expected interrupt\.json, .*, or backchannel"):
        read_samples(tmp_path)


def test_a_bundle_answers_situations_made_on_the_spot(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("silero_vad", "espeakng_loader", "pocketsphinx"):
        pytest.importorskip(package)
    monkeypatch.setattr(dialogues, "NUM_SAMPLES", 1)
    monkeypatch.setattr(dialogues, "STORY_SENTENCES", 1)
    monkeypatch.setattr(dialogues, "ANSWER_S", 1.2)
    system = System(str(bundle_folder))
    job = Job(name="mini-fdb", system=system, data=None, output=tmp_path, seed=3)
    rows = {row.name: row for row in run_mini_full_duplex(job)}
    assert not [row.error for row in rows.values() if row.error]
    for situation in dialogues.SITUATIONS:
        assert rows[f"mini-fdb/{situation}/tor"].n == 1
    samples = read_samples(job.made())
    assert [one.kind for one in samples] == ["backchannel", "pause", "turn", "interruption"]
    for sample in samples:
        here = tmp_path / "outputs" / "mini-fdb" / sample.id
        told, heard = soundfile.info(here / "output.wav"), soundfile.info(sample.input)
        assert told.frames == heard.frames
        assert "chunks" in json.loads((here / "output.json").read_text())
        for reply in json.loads((here / "replies.json").read_text()):
            assert reply["start_s"] == pytest.approx(reply["asked_s"] + 0.5 + reply["compute_s"])
            # One that the user forestalled has no length.
            assert reply["end_s"] in (
                reply["start_s"],
                pytest.approx(min(reply["end_s"], heard.duration), abs=1e-3),
            )
    assert sum(samples[0].people) == pytest.approx(1)
    # What was answered once is kept: the same rows, times of answers included.
    assert {row.name: row for row in run_mini_full_duplex(job)} == rows
    make_full_duplex(tmp_path / "again", 3)
    for sample in samples:
        again = tmp_path / "again" / sample.id / "input.wav"
        assert again.read_bytes() == sample.input.read_bytes()


def test_where_the_time_of_an_answer_goes(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "NUM_RECORDINGS", 2)
    monkeypatch.setattr(latency, "SAMPLING", latency.SamplingConfig(max_units=12))
    job = Job(name="latency", system=System(str(bundle_folder)), data=None, output=tmp_path, seed=1)
    rows = {row.name.removeprefix("latency/"): row for row in run_latency(job)}
    assert not [row.error for row in rows.values() if row.error]
    value = {name: row.value or 0.0 for name, row in rows.items()}
    parts = [f"first_packet_{part}_ms" for part in ("listening", "prefill", "units", "vocoder")]
    assert sum(value[part] for part in parts) == pytest.approx(value["first_packet_ms"])
    assert all(value[part] > 0 for part in parts)
    assert 0 < value["step_ms/p50"] <= value["step_ms/p95"] <= value["step_ms/p99"]
    assert 0 <= value["deadline_miss"] <= 100
    bundle = job.system.bundle
    frame_ms = 1000 / bundle.tokenizer.frame_rate
    lookahead_ms = 1000 * bundle.tokenizer.lookahead / bundle.tokenizer.sample_rate
    expected = frame_ms * (1 + bundle.vocoder.lookahead) + lookahead_ms
    assert value["model/algorithmic_ms"] == pytest.approx(expected)
    assert value["step_budget_ms"] == pytest.approx(frame_ms)
    assert value["model/peak_memory_mb"] > 10
    with pytest.raises(InputError, match="expected a bundle"):
        list(run_latency(Job(name="latency", system=System("mfcc"), data=None, output=tmp_path,
                             seed=1)))  # fmt: skip
