"""Units are asked whether they tell phones apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch

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
        f"{speakers}/{distance}{mean}"
        for speakers in ("within", "across")
        for distance in ("identical", "angular")
        for mean in ("", "/by-cell")
    }
    assert all(row.n == 2 and 0 <= (row.value or 0) <= 100 for row in found.values())
    capsys.readouterr()
    compared = ["evaluate", "compare", str(tmp_path / "out"), str(tmp_path / "out")]
    assert main([*compared, "-o", str(tmp_path / "page")]) == 0
    assert "abx/across/identical" in capsys.readouterr().out
    (tmp_path / "f3.wav").unlink()
    assert main([*words, "-o", str(tmp_path / "out")]) == 1
    assert "f3.wav or f3.flac is missing" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mfcc", "logmel"])
def test_plain_features_are_asked_too(name: str, tmp_path: Path) -> None:
    """Two vowels, each with a pitch and a formant of its own: nothing is easier to tell apart."""
    time_s = torch.arange(16_000) / 16_000
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    generator = torch.Generator().manual_seed(1)
    for number in range(8):
        phone = "pq"[number % 2]
        wave = torch.sin(2 * torch.pi * (300 + 20 * number) * time_s)
        middle = (time_s > 0.4) & (time_s < 0.6)
        tone = torch.sin(2 * torch.pi * {"p": 900.0, "q": 2500.0}[phone] * time_s)
        wave = torch.where(middle, tone, wave) + 0.01 * torch.randn(16_000, generator=generator)
        soundfile.write(tmp_path / f"f{number}.wav", (0.4 * wave).numpy(), 16_000)
        lines.append(f"f{number} 0.45 0.55 {phone} a b s{number // 4}")
    (tmp_path / "some.item").write_text("\n".join(lines) + "\n")
    assert main(["evaluate", name, "--suite", f"abx={tmp_path}", "-o", str(tmp_path / "out")]) == 0
    found = {row.variant: row for row in read_results(tmp_path / "out")}
    assert found["within/angular"].value == 0.0
    assert found["across/angular"].value == 0.0
    assert 0 <= (found["across/identical-k50"].value or 0) < 40
    assert "across/identical-k100" in found
    assert found["across/angular"].subject.model == name
