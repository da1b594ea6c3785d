"""``generate`` and ``resynthesize``: files in, files out, failures listed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_bundle import question

from speechlm.cli.main import main

SHORT = ("--max-units", "12")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(question(), folder / "one.flac")
    shutil.copy(question(), folder / "deep" / "räume 二.flac")
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_one_question_becomes_one_answer(
    bundle_folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "answer.wav"
    words = [str(bundle_folder), str(clips / "one.flac"), "-o", str(out), *SHORT]
    assert main(["generate", *words]) == 0
    samples, rate = soundfile.read(out)
    assert rate == 16_000
    assert len(samples) > 0
    said = capsys.readouterr().out
    assert f"{clips / 'one.flac'} -> {out}" in said
    assert "first audio after" in said
    assert "real-time factor" in said


@pytest.mark.parametrize("command", ["generate", "resynthesize"])
def test_a_folder_keeps_its_names(
    command: str, bundle_folder: Path, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    extra = SHORT if command == "generate" else ()
    assert main([command, str(bundle_folder), str(clips), "-o", str(out), *extra]) == 0
    assert files(out) == {"one.wav", "deep/räume 二.wav"}


def test_resynthesis_is_as_long_as_the_recording(
    bundle_folder: Path, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "back.wav"
    assert main(["resynthesize", str(bundle_folder), str(clips / "one.flac"), "-o", str(out)]) == 0
    before = soundfile.info(clips / "one.flac").duration
    assert abs(soundfile.info(out).duration - before) < 0.05


def test_the_answer_is_what_python_gives(bundle_folder: Path, clips: Path, tmp_path: Path) -> None:
    from speechlm import SpeechLM
    from speechlm.audio import load_audio
    from speechlm.config import SamplingConfig

    out = tmp_path / "answer.wav"
    words = ["--temperature", "1", "--top-k", "5", "--top-p", "0.9", "--seed", "7", *SHORT]
    words += ["--weights", "int8"]
    main(["generate", str(bundle_folder), str(clips / "one.flac"), "-o", str(out), *words])
    sampling = SamplingConfig(temperature=1.0, top_k=5, top_p=0.9, max_units=12)
    wave = load_audio(clips / "one.flac", 16_000)
    model = SpeechLM.from_pretrained(bundle_folder)
    model.weights = "int8"
    expected = model.reply(wave, 16_000, sampling=sampling, seed=7)
    given, _ = soundfile.read(out)
    assert np.abs(given - expected.clamp(-1, 1).numpy()).max() < 1e-4


def test_continuing_takes_the_prompt_that_was_asked_for(
    bundle_folder: Path, clips: Path, tmp_path: Path
) -> None:
    from speechlm import SpeechLM
    from speechlm.audio import load_audio
    from speechlm.config import SamplingConfig

    out = tmp_path / "more.wav"
    words = ["--mode", "continue", "--prompt-seconds", "0.2", "--temperature", "1", *SHORT]
    main(["generate", str(bundle_folder), str(clips / "one.flac"), "-o", str(out), *words])
    wave = load_audio(clips / "one.flac", 16_000)[:3200]
    expected = SpeechLM.from_pretrained(bundle_folder).continue_speech(
        wave, 16_000, sampling=SamplingConfig(temperature=1.0, max_units=12)
    )
    given, _ = soundfile.read(out)
    assert np.abs(given - expected.clamp(-1, 1).numpy()).max() < 1e-4


def test_a_prompt_of_no_length_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "b", "a.wav", "--prompt-seconds", "0"]) == 2
    assert "expected a number above 0" in capsys.readouterr().err


def test_a_bad_file_is_listed_and_the_others_are_done(
    bundle_folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "empty.wav").touch()
    (clips / "text.wav").write_text("not audio")
    out = tmp_path / "out"
    words = ["resynthesize", str(bundle_folder), str(clips), "-o", str(out)]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert f"failed: {clips / 'empty.wav'}: the file is empty" in said
    assert f"failed: {clips / 'text.wav'}: not audio" in said
    assert "2 of 4 recordings failed" in said
    assert files(out) == {"one.wav", "deep/räume 二.wav"}

    assert main([*words, "--keep-going", "--force"]) == 0


def test_when_nothing_can_be_used_it_is_the_input(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.wav"
    bad.touch()
    words = [str(bundle_folder), str(bad), "-o", str(tmp_path / "out")]
    assert main(["resynthesize", *words]) == 2
    assert "none of 1 recordings could be used" in capsys.readouterr().err


def test_existing_files_are_kept_unless_forced(
    bundle_folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answer.wav"
    out.write_bytes(b"mine")
    words = ["resynthesize", str(bundle_folder), str(clips / "one.flac"), "-o", str(out)]
    assert main(words) == 2
    assert "exists already; --force overwrites it" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main([*words, "--force"]) == 0
    assert soundfile.info(out).frames > 0


def test_a_recording_is_never_overwritten_by_its_own_answer(
    bundle_folder: Path, clips: Path, tmp_path: Path
) -> None:
    samples, rate = soundfile.read(question())
    soundfile.write(clips / "two.wav", samples, rate)
    before = (clips / "two.wav").read_bytes()
    words = [str(bundle_folder), str(clips / "two.wav"), "-o", str(clips), "--force"]
    assert main(["resynthesize", *words]) == 2
    assert (clips / "two.wav").read_bytes() == before


def test_two_recordings_for_one_file_are_refused(
    bundle_folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(clips / "one.flac", clips / "one.wav")
    assert main(["resynthesize", str(bundle_folder), str(clips), "-o", str(tmp_path / "o")]) == 2
    assert "would both become" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_one_wav_for_several_recordings_is_refused(
    bundle_folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resynthesize", str(bundle_folder), str(clips), "-o", "one.wav"]) == 2
    assert "expected a folder after -o for 2 recordings" in capsys.readouterr().err


def test_json_lines_that_name_files_elsewhere_stay_below_the_output(
    bundle_folder: Path, clips: Path, tmp_path: Path
) -> None:
    (clips / "rows.jsonl").write_text('{"audio": "one.flac", "id": "../../a/b.x"}\n')
    out = tmp_path / "out"
    assert (
        main(["resynthesize", str(bundle_folder), str(clips / "rows.jsonl"), "-o", str(out)]) == 0
    )
    assert files(out) == {"a/b.x.wav"}


@pytest.mark.parametrize("missing", ["input", "bundle"])
def test_what_is_not_there_is_named(
    missing: str, bundle_folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = clips / "no" / "where"
    words = [str(bundle_folder), str(nowhere)]
    if missing == "bundle":
        words = [str(nowhere), str(clips)]
    assert main(["generate", *words]) == 2
    said = capsys.readouterr().err
    assert str(nowhere) in said
    assert said.count("\n") == 1


def test_a_bundle_whose_tokenizer_was_fitted_again_is_refused(
    bundle_folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from small_bundle import small_bundle

    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_folder, bundle)
    shutil.rmtree(bundle / "tokenizer")
    small_bundle(seed=2).tokenizer.save(bundle / "tokenizer")
    assert main(["generate", str(bundle), str(clips)]) == 2
    said = capsys.readouterr().err
    assert "fitted again" in said
    assert said.count("\n") == 1
