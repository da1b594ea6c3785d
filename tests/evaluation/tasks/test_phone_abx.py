"""Units are asked whether they tell phones apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile

from speechlm.cli.main import main
from speechlm.data.human import human_clips
from speechlm.evaluation.tasks.results import read_results


def test_units_are_asked_for_phones(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for number, clip in enumerate(list(human_clips("answers").values())[:6]):
        soundfile.write(tmp_path / f"f{number}.wav", *soundfile.read(clip.path))
        for place in range(3):
            onset = 0.1 + 0.06 * place
            phone, speaker = "pq"[(number + place) % 2], f"s{number % 2}"
            lines.append(f"f{number} {onset:.2f} {onset + 0.06:.2f} {phone} a b {speaker}")
    (tmp_path / "some.item").write_text("\n".join(lines) + "\n")
    words = ["evaluate", str(bundle_folder), "--suite", f"abx={tmp_path}"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    found = {row.variant: row for row in read_results(tmp_path / "out")}
    assert set(found) == {
        f"{speakers}/{distance}"
        for speakers in ("within", "across")
        for distance in ("identical", "angular")
    }
    assert all(row.subset == "some" and 0 <= (row.value or 0) <= 100 for row in found.values())
    (tmp_path / "f3.wav").unlink()
    assert main([*words, "-o", str(tmp_path / "out")]) == 1
    assert "f3.wav or f3.flac is missing" in capsys.readouterr().out
