"""``score``: a table or JSON lines of likelihoods, failures listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_bundle import question, small_bundle

from speechlm import SpeechLM
from speechlm.audio import load_audio
from speechlm.cli import score as score_module
from speechlm.cli.main import main
from speechlm.model.likelihood import score_recordings
from speechlm.units import Units


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(question(), folder / "one.flac")
    samples, rate = soundfile.read(question())
    soundfile.write(folder / "deep" / "räume 二.wav", samples[: len(samples) // 2], rate)
    return folder


def encoded(model: SpeechLM, path: Path) -> Units:
    rate = model.tokenizer.sample_rate
    return model.encode(load_audio(path, rate), rate)


def numbers(line: str) -> list[float]:
    return [float(word) for word in line.split()[-5:]]


def test_the_table_says_what_python_gives(
    bundle_folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(bundle_folder), str(clips)]) == 0
    said = capsys.readouterr()
    head, *lines, total = said.out.splitlines()
    assert " ".join(head.split()) == "recording seconds units sum per unit per second"
    assert "scoring: 2 recordings" in said.err
    model = SpeechLM.from_pretrained(bundle_folder)
    paths = [clips / "one.flac", clips / "deep" / "räume 二.wav"]
    found = score_recordings(model.lm, [encoded(model, path) for path in paths])
    for line, path, one in zip(lines, paths, found, strict=True):
        assert line.startswith(str(path))
        expected = [one.duration_s, one.num_units, one.total, one.per_unit, one.per_second]
        assert numbers(line) == pytest.approx(expected, rel=1e-2, abs=1e-2)
    assert total.startswith("all ")
    assert numbers(total)[2] == pytest.approx(sum(one.total for one in found), abs=0.02)


def test_one_recording_is_a_line_by_itself(
    bundle_folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(bundle_folder), str(clips / "one.flac")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_other_weights_are_compared_with_float32(
    bundle_folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(bundle_folder), str(clips), "--weights", "int8"]) == 0
    *_, total, said = capsys.readouterr().out.splitlines()
    model = SpeechLM.from_pretrained(bundle_folder)
    paths = [clips / "one.flac", clips / "deep" / "räume 二.wav"]
    units = [encoded(model, path) for path in paths]
    plain = score_recordings(model.lm, units)
    found = score_recordings(model.lm, units, weights="int8")
    assert numbers(total)[2] == pytest.approx(sum(one.total for one in found), abs=0.02)
    lost = sum(one.total for one in plain) - sum(one.total for one in found)
    per_unit = lost / sum(one.num_units for one in found)
    assert said == f"int8 weights lose {per_unit:.4f} nats a unit"


def test_json_lines_hold_the_same_to_the_last_digit(
    bundle_folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "scores.jsonl"
    words = ["score", str(bundle_folder), str(clips), "--output", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"2 of 2 recordings -> {out}\n"
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["one.flac", "deep/räume 二.wav"]
    model = SpeechLM.from_pretrained(bundle_folder)
    (one,) = score_recordings(model.lm, [encoded(model, clips / "one.flac")])
    assert rows[0] == {
        "recording": str(clips / "one.flac"),
        "id": "one.flac",
        "seconds": one.duration_s,
        "units": one.num_units,
        "sum": pytest.approx(one.total, rel=1e-6),
        "per_unit": pytest.approx(one.per_unit, rel=1e-6),
        "per_second": pytest.approx(one.per_second, rel=1e-6),
    }
    assert main(words) == 2
    assert f"{out} exists already; --force overwrites it" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0


@pytest.mark.parametrize(
    ("span", "seconds"), [("0.1:0.4", (0.1, 0.4)), ("0.2:", (0.2, None)), (":.3", (0.0, 0.3))]
)
def test_a_span_restricts_what_counts(
    span: str,
    seconds: tuple[float, float | None],
    bundle_folder: Path,
    clips: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["score", str(bundle_folder), str(clips), "--span", span]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    model = SpeechLM.from_pretrained(bundle_folder)
    units = encoded(model, clips / "one.flac")
    start_s, end_s = seconds
    span_s = (start_s, units.duration_s if end_s is None else end_s)
    (one,) = score_recordings(model.lm, [units], spans_s=[span_s])
    expected = [one.duration_s, one.num_units, one.total]
    assert numbers(line)[:3] == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("span", ["1", "2:1", "1:1", ":", "a:b", "0:-1", "nan:1", ".:1", ":0"])
def test_a_span_that_is_none_is_refused(span: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "bundle", "a.wav", f"--span={span}"]) == 2
    assert f"expected FROM:TO in seconds, FROM below TO, got {span!r}" in capsys.readouterr().err


def bad(clips: Path, kind: str) -> tuple[Path, str]:
    """A recording that cannot be scored, and why."""
    path, rate = clips / f"{kind}.wav", 16_000
    samples = np.zeros(rate)
    match kind:
        case "missing":
            return path, "no such corpus"
        case "empty":
            path.touch()
            return path, "the file is empty"
        case "text":
            path.write_text("not audio")
            return path, "not audio"
        case "short":
            samples = np.ones(40)
        case "long":  # for the context of the bundle's LM, 1024 positions
            samples = np.random.default_rng(0).normal(0, 0.1, 30 * rate)
    soundfile.write(path, samples, rate)
    reasons = {"silent": "silent", "short": "expected at least 20 ms", "long": "at most 1024 pos"}
    return path, reasons[kind]


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "silent", "short", "long"])
def test_a_recording_that_cannot_be_scored_is_one_line(
    kind: str, bundle_folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, reason = bad(clips, kind)
    assert main(["score", str(bundle_folder), str(path)]) == 2
    said = capsys.readouterr()
    assert str(path) in said.err
    assert reason in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_span_outside_of_the_recording_is_one_line(
    bundle_folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = clips / "one.flac"
    assert main(["score", str(bundle_folder), str(path), "--span", "0.5:1000"]) == 2
    line = capsys.readouterr().err
    assert f"{path}: expected a span of a frame or more within 0.." in line
    assert "got 0.5..1000 s" in line
    assert line.count("\n") == 1


def test_bad_ones_among_many_are_listed_and_counted(
    bundle_folder: Path,
    clips: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reasons = [bad(clips, kind) for kind in ("empty", "long", "silent")]
    words = ["score", str(bundle_folder), str(clips)]
    assert main(words) == 1
    said = capsys.readouterr()
    for path, reason in reasons:
        (line,) = (line for line in said.err.splitlines() if f"failed: {path}: " in line)
        assert reason in line
    assert "3 of 5 recordings failed" in said.err
    head, *lines, total = said.out.splitlines()
    assert len(lines) == 2

    monkeypatch.setattr(score_module, "FRAMES_AT_ONCE", 1)  # each by itself
    assert main([*words, "--keep-going"]) == 0
    assert capsys.readouterr().out.splitlines() == [head, *lines, total]


def test_when_none_can_be_scored_it_is_the_input(
    bundle_folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(bad(clips, kind)[0]) for kind in ("empty", "silent")]
    out = tmp_path / "scores.jsonl"
    assert main(["score", str(bundle_folder), *paths, "--output", str(out)]) == 2
    assert "none of 2 recordings could be used" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_without_audio_or_bundle_is_one_line(
    bundle_folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nothing").mkdir()
    for words, said in (
        ([str(bundle_folder), str(tmp_path / "nothing")], "nothing"),
        ([str(tmp_path), str(clips)], "is not a bundle"),
    ):
        assert main(["score", *words]) == 2
        line = capsys.readouterr().err
        assert said in line
        assert line.count("\n") == 1


def test_a_bundle_whose_tokenizer_was_exchanged_is_refused(
    bundle_folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_folder, bundle)
    shutil.rmtree(bundle / "tokenizer")
    small_bundle(seed=2).tokenizer.save(bundle / "tokenizer")
    assert main(["score", str(bundle), str(clips)]) == 2
    line = capsys.readouterr().err
    assert "fitted again" in line
    assert line.count("\n") == 1


def test_a_layout_that_takes_no_speech_alone_is_refused_at_once(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from speechlm.layouts.registry import build_layout
    from speechlm.layouts.vocabulary import Vocabulary
    from speechlm.model.architecture import DecoderConfig
    from speechlm.model.decoder import Decoder
    from speechlm.model.unit_lm import UnitLM

    model = small_bundle()
    layout = build_layout("duplex", {}, 1)
    vocabulary = Vocabulary(
        tokenizer_fingerprint=model.tokenizer.fingerprint,
        stream_sizes=layout.stream_sizes((model.tokenizer.vocab_size,)),
    )
    shape = dict(num_layers=1, model_dim=16, num_heads=1, num_kv_heads=1, ffn_dim=8)
    decoder = Decoder(DecoderConfig(vocab_size=vocabulary.size, **shape))
    lm = UnitLM(decoder, vocabulary, layout)
    SpeechLM(model.tokenizer, lm, model.vocoder).save_pretrained(tmp_path / "bundle")
    assert main(["score", str(tmp_path / "bundle"), str(clips)]) == 2
    line = capsys.readouterr().err
    assert "the layout 'duplex' takes {self, other}" in line
    assert line.count("\n") == 1


def test_an_output_that_is_no_json_lines_or_an_input_is_refused(
    bundle_folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = clips / "rows.jsonl"
    rows.write_text('{"audio": "one.flac"}\n')
    for out, said in (
        (clips / "one.flac", "expected a file that ends in .jsonl"),
        (rows, "lists the recordings themselves"),
    ):
        words = ["score", str(bundle_folder), str(rows), "--output", str(out), "--force"]
        assert main(words) == 2
        line = capsys.readouterr().err
        assert said in line
        assert line.count("\n") == 1
    assert rows.read_text() == '{"audio": "one.flac"}\n'
