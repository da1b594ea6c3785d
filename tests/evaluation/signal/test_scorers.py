from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import PartialFailure, PluginError
from speechlm.evaluation.signal import scorers
from speechlm.evaluation.signal.measuring import measure_many
from speechlm.evaluation.signal.scorers import (
    SCORERS,
    Measured,
    Sample,
    Scorer,
    choose,
    measure,
    state_of,
)

for package in ("pocketsphinx", "jiwer", "pystoi", "onnxruntime"):
    pytest.importorskip(package)

QUICK = ["speaker", "mcd_f0", "si_sdr"]
THREADED = [*QUICK, "stoi", "mel_l1", "plcmos", "error_rates"]
"""Whatever might hang on threads, or on what was measured before."""


def sample_of(name: str) -> Sample:
    clip = human_clips()[name]
    wave = load_audio(clip.path, 16_000).numpy()
    return Sample(
        wave=wave, sample_rate=16_000, reference=wave, reference_rate=16_000, text=clip.text
    )


@pytest.fixture(scope="module")
def same() -> Measured:
    """A recording against itself, by all that is there without a network."""
    usable, _ = choose(None)
    return measure(sample_of("november"), usable)


def test_a_recording_is_itself(same: Measured) -> None:
    values = {name: total / count for name, (total, count) in same.figures.items()}
    assert same.left_out == {}
    for name in ("wer_heard", "cer_heard", "per_heard", "mcd13", "mcd13_c0", "vde", "gpe", "ffe"):
        assert values[name] == 0, name
    for name in ("f0_rmse_hz", "f0_rmse_cents", "mel_l1"):
        assert values[name] == 0, name
    for name in ("spk_similarity", "stoi", "estoi", "f0_corr"):
        assert values[name] == pytest.approx(1, abs=1e-5), name
    for name, value in values.items():
        if name.endswith("/reference"):
            assert value == values[name.removesuffix("/reference")]


def test_what_is_heard_stands_beside_the_rates(same: Measured) -> None:
    assert same.note["text"] == "november"
    deletions, _, substitutions, hits = same.note["edits"]["wer"]
    assert deletions + substitutions + hits == 1
    assert same.figures["wer"][1] == 1
    assert same.figures["per"][1] == len(["N", "OW", "V", "EH", "M", "B", "ER"])


def test_without_a_text_rates_are_against_what_the_reference_says() -> None:
    found = measure(replace(sample_of("november"), text=None), ["error_rates"])
    assert set(found.figures) == {"wer_heard", "cer_heard", "per_heard"}


def test_what_a_recording_does_not_allow_is_told_and_the_rest_measured() -> None:
    whole = sample_of("november")
    found = measure(replace(whole, wave=whole.wave[:4_000]), [*QUICK, "stoi"])
    assert set(found.left_out) == {"si_sdr", "stoi"}
    assert {"mcd13", "spk_similarity"} <= set(found.figures)


@pytest.mark.parametrize(
    ("wave", "reason"),
    [
        (np.zeros(0, np.float32), "the recording: 0 ms long"),
        (np.zeros(9_000, np.float32), "the recording: silent"),
        (np.full(9_000, np.nan, np.float32), "the recording: holds NaN"),
    ],
)
def test_an_output_that_is_nothing_is_an_error(wave: np.ndarray, reason: str) -> None:
    found = measure(replace(sample_of("two"), wave=wave), QUICK)
    assert reason in found.error
    assert found.figures == {}


def test_a_scorer_is_embedded_of_the_hub_or_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise PluginError("needs the package oboe")

    def add(take: object, measured: Measured) -> None:
        raise AssertionError("not loaded, yet used")

    more = {"oboe": Scorer(needs="nothing", measure=add, load=missing)}
    monkeypatch.setattr(scorers, "SCORERS", {**SCORERS, **more})
    assert state_of("mcd_f0").kind == "embedded"
    utmos = state_of("utmos")
    assert utmos.kind == state_of("nisqa").kind == "hub"
    assert "tarepan/SpeechMOS:ed25eac" in utmos.why
    assert state_of("oboe") == scorers.State(kind="unavailable", why="needs the package oboe")

    usable, reasons = choose(None)
    assert "utmos" not in usable
    assert "utmos" not in reasons, "the hub's are not asked for"
    assert reasons["oboe"] == "needs the package oboe"
    usable, reasons = choose(["mcd_f0", "visqol", "oboe"])
    assert usable == ["mcd_f0"]
    assert "no such scorer; there are dnsmos" in reasons["visqol"]


def test_processes_and_order_do_not_change_what_is_said() -> None:
    samples = [sample_of(name) for name in ("two", "april")]
    samples = [replace(each, wave=each.wave + 0.003 * np.sin(each.wave)) for each in samples]
    unreadable = Measured(error="no such file")

    def drawn() -> Iterator[Sample | Measured]:
        yield from samples[:1]
        yield unreadable
        yield from samples[1:]

    found = list(measure_many(drawn(), THREADED, 3, num_workers=2))
    assert found.pop(1).error == "no such file"
    assert not any(each.error or each.left_out for each in found)
    backwards = list(measure_many(samples[::-1], THREADED, 2, num_workers=1))
    assert [(each.figures, each.note) for each in backwards[::-1]] == [
        (each.figures, each.note) for each in found
    ]


class Deadly(Sample):
    """Ends the process that it comes to."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (1,)


def test_a_killed_process_is_told() -> None:
    wave = np.ones(1_000, np.float32)
    deadly = Deadly(wave=wave, sample_rate=16_000, reference=wave, reference_rate=16_000)
    with pytest.raises(PartialFailure, match="was killed"):
        list(measure_many([deadly], QUICK, 1, num_workers=2))
