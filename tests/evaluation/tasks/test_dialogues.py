"""Two-channel dialogues beside real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechlm.data.human import human_clips
from speechlm.errors import CorpusError, InputError
from speechlm.evaluation.tasks.dialogues import run_dialogues
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.results import Result


def write_turns(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def measure(made: Path, truth: Path, output: Path) -> dict[str, Result]:
    job = Job(name="dialogues", system=System(str(made)), data=truth, output=output, seed=1)
    return {row.name.removeprefix("dialogues/"): row for row in run_dialogues(job)}


FIRST = {"id": "1", "a": [[0, 2], [2.5, 4]], "b": [[4.2, 6], [9, 10]], "duration": 30}
SECOND = {"id": "2", "a": [[0, 10]], "b": [[3, 3.5], [9, 12]], "duration": 30}


def test_figures_of_dialogues_that_are_known(tmp_path: Path) -> None:
    made = write_turns(tmp_path / "made", [FIRST, SECOND])
    rows = measure(made, made, tmp_path / "out")
    expected = {
        "ipu_per_min": 7.0,
        "ipu_seconds_per_min": 2 + 1.5 + 1.8 + 1 + 10 + 0.5 + 3,
        "pause_per_min": 2.0,
        "pause_seconds_per_min": 3.5,
        "pause_mean_s": 1.75,
        "gap_per_min": 1.0,
        "gap_seconds_per_min": 0.2,
        "overlap_per_min": 2.0,
        "overlap_seconds_per_min": 1.5,
        "backchannels_per_min": 1.0,
        "transfers_within_250ms": 50.0,
        "transfer/median_s": -0.4,
    }
    for name, value in expected.items():
        assert rows[name].value == pytest.approx(value), name
    for kind in ("ipu", "pause", "gap", "overlap", "transfer"):
        row = rows[f"{kind}/wasserstein_s"]
        assert (row.value, row.ci95, row.n) == (0.0, (0.0, 0.0), 2)


def test_distances_to_real_dialogues(tmp_path: Path) -> None:
    made = write_turns(tmp_path / "made", [FIRST, SECOND])
    later = {"id": "1", "a": [[0, 2], [3.5, 4]], "b": [[5, 6]], "duration": 20}
    rows = measure(made, write_turns(tmp_path / "truth", [later]), tmp_path / "out")
    assert rows["gap/wasserstein_s"].value == pytest.approx(0.8)
    assert rows["pause/wasserstein_s"].value == pytest.approx(0.5 * 1.0 + 0.5 * 1.5)
    assert rows["ground-truth/ipu_per_min"].value == pytest.approx(9)
    low, high = rows["pause/wasserstein_s"].ci95 or (0, 0)
    assert low <= 1.25 <= high
    nothing = rows["overlap/wasserstein_s"]
    assert (nothing.value, nothing.error) == (None, "there is no overlap on one side")


def test_recordings_are_listened_to(tmp_path: Path) -> None:
    pytest.importorskip("silero_vad")
    word, rate = soundfile.read(human_clips("answers")["monday"].path, dtype="float32")
    pause = np.zeros(rate, np.float32)
    first = np.concatenate([pause, word, pause, 0 * word, pause])
    second = np.concatenate([pause, 0 * word, pause, word, pause])
    folders = tmp_path / "made", tmp_path / "truth"
    for folder in folders:
        folder.mkdir()
    soundfile.write(folders[0] / "one.wav", np.stack([first, second], axis=1), rate)
    soundfile.write(folders[0] / "mono.wav", first, rate)
    soundfile.write(folders[1] / "one_a.wav", first, rate)
    soundfile.write(folders[1] / "one_b.wav", second, rate)
    rows = measure(*folders, tmp_path / "out")
    assert rows["gap_per_min"].value == pytest.approx(60 * rate / len(first))
    assert rows["gap_mean_s"].value == pytest.approx(1, abs=0.2)
    assert rows["gap/wasserstein_s"].value == 0
    failed = rows["failed"]
    assert failed.n == 1
    assert "mono.wav: expected two channels, a speaker each, got 1" in failed.error


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "1", "a": []}', "turns.jsonl:1: expected"),
        ('{"id": "1", "a": [[0, 9]], "b": [], "duration": 5}', "within 0 and its duration, 5 s"),
        ("[]", "turns.jsonl:1: expected"),
    ],
)
def test_lines_that_are_no_dialogue_are_named(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "turns.jsonl").write_text(line + "\n")
    with pytest.raises(CorpusError, match=reason):
        measure(tmp_path, tmp_path, tmp_path / "out")


def test_what_holds_no_dialogue_is_refused(tmp_path: Path, bundle_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="expected dialogues"):
        measure(tmp_path / "empty", tmp_path / "empty", tmp_path / "out")
    made = write_turns(tmp_path / "made", [FIRST])
    with pytest.raises(InputError, match=r"expected a folder of recordings, got .* a bundle"):
        measure(bundle_folder, made, tmp_path / "out")
