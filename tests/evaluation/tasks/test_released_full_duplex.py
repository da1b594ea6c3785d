"""Figures named ``fdb_`` are what the published scoring of Full-Duplex-Bench gives.

With FULL_DUPLEX_BENCH naming a checkout of github.com/DanielLin94144/Full-Duplex-Bench, its code
scores the same made dialogues; without, what it gave at d7336bd is compared.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import random
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechlm.data.human import human_clips
from speechlm.evaluation.tasks.full_duplex import PEOPLE_NAME, run_full_duplex
from speechlm.evaluation.tasks.job import Job, System

RATE = 16_000
NUM_SAMPLES = 6
EXPECTED = {
    "pause_handling/fdb_tor": 50.0,
    "smooth_turn_taking/fdb_tor": 100 * 5 / 6,
    "smooth_turn_taking/fdb_latency_s": 0.42709599514570834,
    "user_interruption/fdb_tor": 100 * 4 / 6,
    "user_interruption/fdb_latency_s": 0.1908715138571775,
    "user_interruption/fdb_stop_latency_s": 0.524,
    "user_interruption/fdb_response_latency_s": 0.548,
    "icc_backchannel/fdb_tor": 50.0,
    "icc_backchannel/fdb_frequency": 0.2991777940761782,
    "icc_backchannel/fdb_jsd": 0.5831159897084605,
}
"""What the published code printed for the dialogues made here."""


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recorded words and sentences at drawn places, with transcripts that fit them by and by."""
    pytest.importorskip("silero_vad")
    folder = tmp_path_factory.mktemp("full-duplex")
    draw = random.Random(1)
    people = {}
    for task in ("pause_handling", "smooth_turn_taking", "user_interruption", "icc_backchannel"):
        for number in range(NUM_SAMPLES):
            here = folder / task / str(number)
            here.mkdir(parents=True)
            user, user_ends = _recording(draw, 1, 0.0)
            # The published code takes any rate for 16 kHz: in one of the recordings it shows.
            model, _ = _recording(draw, 1 + number % 3, 1.0, short=number % 2 == 0)
            soundfile.write(here / "input.wav", user, RATE)
            rate = 24_000 if number == 4 else RATE
            soundfile.write(here / "output.wav", model, rate)
            chunks = _chunks(draw, len(model) / rate, draw.choice((0, 1, 2, 3, 4, 9)))
            if task == "pause_handling" and chunks:
                chunks[-1]["timestamp"][1] = None
            told = {"text": " ".join(str(one["text"]) for one in chunks), "chunks": chunks}
            (here / "output.json").write_text(json.dumps(told))
            span = [user_ends, user_ends + 0.4]
            if task == "pause_handling":
                (here / "pause.json").write_text(json.dumps([{"text": "", "timestamp": span}]))
            elif task == "smooth_turn_taking":
                name = "turn_taking.json"
                (here / name).write_text(json.dumps([{"text": "", "timestamp": span}]))
            elif task == "user_interruption":
                row = {"context": "a", "interrupt": "b", "timestamp": [1.0, user_ends]}
                (here / "interrupt.json").write_text(json.dumps([row]))
            else:
                shares = [draw.random() for _ in range(draw.randint(20, 60))]
                people[str(number)] = [share / sum(shares) for share in shares]
    (folder / "icc_backchannel" / PEOPLE_NAME).write_text(json.dumps(people))
    return folder


def _recording(
    draw: random.Random, count: int, start_s: float, short: bool = False
) -> tuple[np.ndarray[Any, Any], float]:
    clips = list(human_clips("answers" if short else None).values())
    parts, end_s = [], 0.0
    for _ in range(count):
        parts.append(np.zeros(round((start_s + draw.uniform(0.2, 1.5)) * RATE), np.float32))
        parts.append(soundfile.read(draw.choice(clips).path, dtype="float32")[0])
        end_s = sum(map(len, parts)) / RATE
    parts.append(np.zeros(round(draw.uniform(0.5, 1.5) * RATE), np.float32))
    return np.concatenate(parts), end_s


def _chunks(draw: random.Random, duration_s: float, count: int) -> list[dict[str, Any]]:
    starts = sorted(draw.uniform(0, duration_s - 0.3) for _ in range(count))
    return [
        {"text": "word", "timestamp": [start, start + draw.uniform(0.1, 0.3)]} for start in starts
    ]


def ours(folder: Path, output: Path) -> dict[str, float]:
    job = Job(name="fdb", system=System(str(folder)), data=folder, output=output, seed=1)
    found = {}
    for row in run_full_duplex(job):
        if row.variant.startswith("fdb_"):
            assert row.value is not None, row.error
            found[f"{row.subset}/{row.variant}"] = row.value
    return found


def test_figures_are_those_that_the_published_code_gave(dialogues: Path, tmp_path: Path) -> None:
    assert ours(dialogues, tmp_path) == pytest.approx(EXPECTED, abs=1e-9)


@pytest.mark.skipif("FULL_DUPLEX_BENCH" not in os.environ, reason="needs a checkout of it")
def test_figures_are_those_of_the_published_code(
    dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = Path(os.environ["FULL_DUPLEX_BENCH"]) / "v1_v1.5" / "evaluation"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = published(code, dialogues, monkeypatch)
    assert ours(dialogues, tmp_path) == pytest.approx(theirs, abs=1e-9)
    assert theirs == pytest.approx(EXPECTED, abs=1e-9)


def published(code: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Run the published scripts; only what needs a network or torchcodec is exchanged."""
    import silero_vad
    import torchaudio

    def load(path: Any) -> tuple[torch.Tensor, int]:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.tensor(samples.T), rate

    monkeypatch.setattr(torchaudio, "load", load)
    monkeypatch.setattr(
        torch.hub, "load", lambda *args, **kwargs: (silero_vad.load_silero_vad(), None)
    )
    monkeypatch.syspath_prepend(str(code))
    found = {}
    for task, script in (
        ("pause_handling", "eval_pause_handling"),
        ("smooth_turn_taking", "eval_smooth_turn_taking"),
        ("user_interruption", "eval_user_interruption"),
    ):
        score = getattr(importlib.import_module(script), script)
        lines = _printed(score, folder / task, *([_Rater()] if "user" in task else []))
        found[f"{task}/fdb_tor"] = 100 * _after(lines, "Average take turn:")
        if task != "pause_handling":
            found[f"{task}/fdb_latency_s"] = _after(lines, "Average latency:")

    monkeypatch.chdir(folder / "icc_backchannel")
    module = importlib.import_module("eval_backchannel")
    means = _Means()
    monkeypatch.setattr(module, "np", means)
    _printed(module.eval_backchannel, Path("."))
    jsd, tor, frequency = means.found
    found["icc_backchannel/fdb_jsd"] = jsd
    found["icc_backchannel/fdb_tor"] = 100 * tor
    found["icc_backchannel/fdb_frequency"] = frequency

    module = importlib.import_module("get_timing")
    stops, responses = [], []
    for sample in sorted((folder / "user_interruption").iterdir()):
        _printed(module.process_folder, sample)
        path = sample / module.OUT_FILENAME
        told = json.loads(path.read_text())
        path.unlink()
        stops += [end - start for start, end in told["latency_stop_list"]]
        responses += [end - start for start, end in told["latency_resp_list"]]
    found["user_interruption/fdb_stop_latency_s"] = float(np.mean(stops))
    found["user_interruption/fdb_response_latency_s"] = float(np.mean(responses))
    for name in ("eval_pause_handling", "eval_smooth_turn_taking", "eval_user_interruption",
                 "eval_backchannel", "get_timing"):  # fmt: skip
        sys.modules.pop(name, None)
    return found


def _printed(score: Any, *args: Any) -> list[str]:
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(io.StringIO()):
        score(*args)
    return written.getvalue().splitlines()


def _after(lines: list[str], name: str) -> float:
    return next(float(line.partition(name)[2]) for line in lines if line.startswith(name))


class _Means:
    """numpy, with the means that were taken in full: the script prints four digits."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def mean(self, values: Any) -> float:
        self.found.append(float(np.mean(values)))
        return self.found[-1]


class _Rater:
    """Stands for the service that rates answers, whose ratings are not compared."""

    def __init__(self) -> None:
        self.chat = types.SimpleNamespace(completions=self)

    def create(self, **asked: Any) -> Any:
        said = "Analysis: none.\nI would rate the AI's response as 3"
        message = types.SimpleNamespace(content=said)
        return types.SimpleNamespace(choices=[types.SimpleNamespace(message=message)])
