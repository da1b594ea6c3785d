from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlm.data.corpus import open_corpus
from speechlm.data.human import human_clips
from speechlm.errors import CorpusError, InputError
from speechlm.evaluation.signal.scorers import SCORERS
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.recordings import match, run_recordings, run_resynthesis
from speechlm.evaluation.tasks.results import Result

for package in ("pystoi", "jiwer", "pocketsphinx"):
    pytest.importorskip(package)

NAMES = ("april", "november", "two")
CHEAP = "- name: mcd_f0\n- name: spk_similarity\n- name: signal_metric\n"


@pytest.fixture
def references(tmp_path: Path) -> Path:
    """Three recordings of a word, with texts, and a cheap choice of scorers."""
    folder = tmp_path / "references"
    (folder / "words").mkdir(parents=True)
    rows = []
    for name in NAMES:
        clip = human_clips()[name]
        shutil.copy(clip.path, folder / "words" / f"{name}.flac")
        rows.append({"id": f"word.{name}", "audio": f"words/{name}.flac", "text": clip.text})
    manifest = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "corpus.jsonl").write_text(manifest, encoding="utf-8")
    (folder / "versa.yaml").write_text(CHEAP, encoding="utf-8")
    return folder


@pytest.fixture
def made(references: Path, tmp_path: Path) -> Path:
    """The same recordings, a little louder."""
    folder = tmp_path / "made"
    (folder / "words").mkdir(parents=True)
    for name in NAMES:
        wave, rate = soundfile.read(references / "words" / f"{name}.flac", dtype="float32")
        soundfile.write(folder / "words" / f"{name}.wav", 1.2 * wave, rate, subtype="FLOAT")
    return folder


def job_of(system: Path, references: Path, tmp_path: Path, name: str = "recordings") -> Job:
    return Job(
        name=name, system=System(str(system)), data=references, output=tmp_path / "out", seed=1
    )


def by_name(rows: list[Result]) -> dict[str, Result]:
    return {row.name: row for row in rows}


def test_recordings_are_measured_against_references_of_their_names(
    made: Path, references: Path, tmp_path: Path
) -> None:
    rows = by_name(list(run_recordings(job_of(made, references, tmp_path))))
    assert rows["recordings/mcd13"].value == pytest.approx(0, abs=1e-4)
    assert rows["recordings/mcd13_c0"].value == pytest.approx(
        20 * np.log10(1.2) / np.sqrt(2), rel=1e-3
    )
    assert rows["recordings/spk_similarity"].value == pytest.approx(1, abs=1e-4)
    assert rows["recordings/si_sdr"].value == pytest.approx(100, abs=10)
    assert {row.n for row in rows.values()} == {3}
    assert not any(row.error or row.asr for row in rows.values())

    lines = (tmp_path / "out" / "versa.jsonl").read_text(encoding="utf-8").splitlines()
    scores = [json.loads(line) for line in lines]
    assert [each["key"] for each in scores] == [f"word.{name}" for name in NAMES]
    assert {"mcd", "f0rmse", "f0corr", "spk_similarity", "si_snr"} <= set(scores[0])


def test_a_second_run_gives_the_same_rows_and_measures_nothing(
    made: Path, references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list(run_recordings(job_of(made, references, tmp_path)))
    with monkeypatch.context() as patched:
        patched.setattr("speechlm.evaluation.signal.measuring.measure", None)
        assert list(run_recordings(job_of(made, references, tmp_path))) == first
    wave, rate = soundfile.read(made / "words" / "two.wav")
    soundfile.write(made / "words" / "two.wav", wave[::-1], rate, subtype="FLOAT")
    again = by_name(list(run_recordings(job_of(made, references, tmp_path))))
    assert again["recordings/mcd13"].value != by_name(first)["recordings/mcd13"].value
    assert again["recordings/mcd13"].data_sha256 == first[0].data_sha256


def test_all_that_is_wrong_is_counted(made: Path, references: Path, tmp_path: Path) -> None:
    words = made / "words"
    words.joinpath("april.wav").unlink()
    soundfile.write(words / "november.wav", np.full(9_000, 0.1), 8_000)
    soundfile.write(words / "two.wav", np.zeros(9_000), 16_000)
    soundfile.write(words / "more.wav", np.full(9_000, 0.1), 16_000)
    job = job_of(made, references, tmp_path)
    rows = by_name(list(run_recordings(job)))

    assert list(rows) == ["recordings/failed"]
    assert rows["recordings/failed"].n == 4
    journal = (job.output / "scores" / "recordings.jsonl").read_text(encoding="utf-8")
    errors = {row["id"]: row["error"] for row in map(json.loads, journal.splitlines()[1:])}
    assert "no recording has this name" in errors["word.april"]
    assert "expected 16000 Hz, the rate of its reference, got 8000 Hz" in errors["word.november"]
    assert "silent" in errors["word.two"]
    assert "no reference has this name" in errors["words/more.wav"]
    assert (job.output / "versa.jsonl").read_text(encoding="utf-8") == ""


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(b"RIFFnothing"), "not audio that can be read"),
        (lambda path: soundfile.write(path, np.full((9_000, 2), 0.1), 16_000), "one channel"),
    ],
    ids=["empty", "no audio", "stereo"],
)
def test_a_broken_recording_is_one_line_and_the_others_are_measured(
    write: object, reason: str, made: Path, references: Path, tmp_path: Path
) -> None:
    assert callable(write)
    write(made / "words" / "two.wav")
    rows = by_name(list(run_recordings(job_of(made, references, tmp_path))))
    assert rows["recordings/mcd13"].n == 2
    assert rows["recordings/failed"].n == 1
    assert reason in rows["recordings/failed"].error
    assert "\n" not in rows["recordings/failed"].error


def test_names_are_ids_or_paths_without_endings(made: Path, references: Path) -> None:
    shutil.copy(made / "words" / "two.wav", made / "word.april.wav")
    (made / "words" / "april.wav").unlink()
    pairs = match(open_corpus(made), made, open_corpus(references), references)
    found = {pair.id: pair.made and pair.made.id for pair in pairs}
    assert found == {
        "word.april": "word.april.wav",
        "word.november": "words/november.wav",
        "word.two": "words/two.wav",
    }
    shutil.copy(references / "words" / "two.flac", made / "words" / "two.flac")
    with pytest.raises(CorpusError, match=r"two\.wav and .*two\.flac|two\.flac and .*two\.wav"):
        match(open_corpus(made), made, open_corpus(references), references)


def test_a_scorer_that_is_not_there_fails_only_where_it_was_asked_for(
    made: Path, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (references / "versa.yaml").write_text("- name: speaker\n- name: visqol\n", encoding="utf-8")
    rows = by_name(list(run_recordings(job_of(made, references, tmp_path))))
    assert set(rows) == {"recordings/spk_similarity", "recordings/visqol"}
    assert rows["recordings/visqol"].value is None
    assert "no such scorer" in rows["recordings/visqol"].error
    assert capsys.readouterr().err.count("visqol is left out") == 1


def test_by_default_a_scorer_that_is_not_there_is_said_and_no_error(
    made: Path,
    references: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (references / "versa.yaml").unlink()
    chosen = {name: SCORERS[name] for name in ("pesq", "si_sdr", "utmos")}
    monkeypatch.setattr("speechlm.evaluation.signal.scorers.SCORERS", chosen)
    monkeypatch.setitem(sys.modules, "pesq", None)
    rows = by_name(list(run_recordings(job_of(made, references, tmp_path))))
    assert set(rows) == {"recordings/si_sdr"}
    said = capsys.readouterr().err
    assert "pesq is left out: PESQ needs the package pesq" in said
    assert "utmos" not in said


def test_what_no_recording_allows_is_told(
    made: Path, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        wave, rate = soundfile.read(made / "words" / f"{name}.wav")
        soundfile.write(made / "words" / f"{name}.wav", wave[: len(wave) // 2], rate)
    rows = by_name(list(run_recordings(job_of(made, references, tmp_path))))
    assert "of no recording" in rows["recordings/si_sdr"].error
    assert rows["recordings/mcd13"].n == 3
    assert "si_sdr is left out for 3 of 3" in capsys.readouterr().err


def test_a_bundle_is_heard_through_its_own_resynthesis(
    bundle_folder: Path, references: Path, tmp_path: Path
) -> None:
    chosen = "- name: spk_similarity\n- name: whisper_wer\n"
    (references / "versa.yaml").write_text(chosen, encoding="utf-8")
    # The recognizer takes seconds over what an untrained vocoder says: one word is enough.
    first, _, _ = (references / "corpus.jsonl").read_text(encoding="utf-8").partition("\n")
    (references / "corpus.jsonl").write_text(first, encoding="utf-8")
    job = job_of(bundle_folder, references, tmp_path, "resynthesis")
    rows = by_name(list(run_resynthesis(job)))
    assert -1 <= (rows["resynthesis/spk_similarity"].value or -2) < 0.99
    assert rows["resynthesis/spk_similarity"].asr is None
    assert rows["resynthesis/wer"].n == 1
    assert (rows["resynthesis/wer"].asr or "").startswith("pocketsphinx-")
    assert (rows["resynthesis/wer/reference"].value or 0) <= (rows["resynthesis/wer"].value or 0)

    line = (job.output / "versa.jsonl").read_text(encoding="utf-8").splitlines()[0]
    scores = json.loads(line)
    assert scores["ref_text"] == "april"
    kinds = ("delete", "replace", "equal")
    assert sum(scores[f"pocketsphinx_wer_{kind}"] for kind in kinds) == 1


def test_a_tokenizer_brings_the_vocoder_beside_it(
    bundle_folder: Path, references: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(bundle_folder / "tokenizer", folder)
    shutil.copytree(bundle_folder / "vocoder", folder / "vocoder")
    alone = run_resynthesis(job_of(folder, references, tmp_path / "a", "resynthesis"))
    whole = run_resynthesis(job_of(bundle_folder, references, tmp_path / "b", "resynthesis"))
    for first, second in zip(alone, whole, strict=True):
        assert (first.name, first.value, first.n) == (second.name, second.value, second.n)


def test_other_systems_are_refused_in_a_line(
    bundle_folder: Path, made: Path, references: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"expected a bundle or a tokenizer, got .* a folder of"):
        list(run_resynthesis(job_of(made, references, tmp_path)))
    with pytest.raises(InputError, match=r"expected a folder of recordings, got .* a bundle"):
        list(run_recordings(job_of(bundle_folder, references, tmp_path)))
