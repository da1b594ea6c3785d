"""A listening test tells listeners nothing of its systems, and is the same for the same seed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speechlm.errors import AudioError, CorpusError, InputError
from speechlm.evaluation.listening.answers import read_key
from speechlm.evaluation.listening.kinds import KINDS, KindName
from speechlm.evaluation.listening.making import ANCHOR, make_test, order_of
from speechlm.evaluation.listening.sounds import Sound, low_pass_anchor


def shown(test: Path) -> dict[str, Any]:
    """The data that the page carries."""
    page = (test / "page" / "index.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="test">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_page_has_all_sounds_and_tells_no_system(
    kind: KindName, systems: list[Path], tmp_path: Path
) -> None:
    test = tmp_path / "test"
    make_test(systems, test, kind, checks=0)
    page = (test / "page" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=|@import|url\(", page)
    for name in ("human", "decent", "awful", ANCHOR, "sub"):
        assert not re.search(rf"\b{name}/|\"{name}\"", page)
    key, data = read_key(test), shown(test)
    heard = [
        clip for trial in data["trials"] for clip in (*trial["clips"], trial["reference"]) if clip
    ]
    files = {path.stem for path in (test / "page" / "sounds").iterdir()}
    assert set(heard) == files
    assert {name for trial in data["trials"] for name in trial["clips"]} == set(key["clips"])
    trials = {"mos": 12, "cmos": 8, "ab": 8, "mushra": 4}[kind]
    assert len(data["trials"]) == trials
    for order in data["orders"]:
        assert sorted(row[0] for row in order) == list(range(trials))
        for index, *places in order:
            assert sorted(places) == list(range(len(data["trials"][index]["clips"])))
        if KINDS[kind].paired:
            assert sum(row[1] for row in order) == trials // 2
    assert len({json.dumps(order) for order in data["orders"]}) > 60


def test_the_same_seed_makes_the_same_test(systems: list[Path], tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_test(systems, tmp_path / name, "mos", checks=0, seed=seed)
    keys = [read_key(tmp_path / name) for name in "abc"]
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(InputError, match="holds something"):
        make_test(systems, tmp_path / "a", "mos", checks=0)


def test_checks_say_what_to_answer(systems: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    for kind, width in (("mos", 1), ("cmos", 1), ("mushra", 4)):
        make_test(systems, tmp_path / kind, kind, checks=1)  # type: ignore[arg-type]
        key = read_key(tmp_path / kind)
        ((trial, expected),) = key["checks"].items()
        assert len(expected) == width
        clips = next(row["clips"] for row in key["trials"] if row["id"] == trial)
        assert not set(clips) & set(key["clips"])
        sounds = tmp_path / kind / "page" / "sounds"
        assert soundfile.info(sounds / f"{clips[0]}.wav").duration > 0.8
        assert '"checks"' not in (tmp_path / kind / "page" / "index.html").read_text()


def test_other_names_and_bad_recordings_are_refused(systems: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "test"
    with pytest.raises(InputError, match="two folders or more, got 1"):
        make_test(systems[:1], output, "ab")
    with pytest.raises(InputError, match="different folders"):
        make_test([systems[0], systems[0]], output, "ab")
    with pytest.raises(InputError, match="expected a folder"):
        make_test([systems[0], tmp_path / "none"], output, "ab")
    (systems[1] / "sub" / "0.wav").rename(systems[1] / "sub" / "9.wav")
    with pytest.raises(CorpusError, match=r"decent lacks 1 of the 4 .* the first sub/0"):
        make_test(systems, output, "mos")
    (systems[1] / "sub" / "9.wav").rename(systems[1] / "sub" / "0.wav")
    for bad, said in (
        (np.zeros(1600), "silent"),
        (np.full(1600, np.nan), "NaN"),
        (np.zeros(0), "0"),
    ):
        soundfile.write(systems[2] / "sub" / "3.wav", bad, 16_000, "FLOAT")
        with pytest.raises(AudioError, match=said):
            make_test(systems, output, "mos")
    (systems[2] / "sub" / "3.wav").write_text("no sound")
    with pytest.raises(AudioError, match="not audio"):
        make_test(systems, output, "mos")
    assert not output.exists()


def test_what_may_tell_systems_apart_is_said(systems: list[Path], tmp_path: Path) -> None:
    wave, _ = soundfile.read(systems[1] / "sub" / "0.wav")
    soundfile.write(systems[1] / "sub" / "0.wav", np.stack([wave, wave], axis=1), 8_000)
    said = "\n".join(make_test(systems, tmp_path / "test", "mos", checks=0))
    assert "rates differ" in said
    assert "decent: channels are mixed down" in said
    assert re.search(r"levels differ by 9\.\d dB", said)
    rates = {soundfile.info(path).samplerate for path in (tmp_path / "test").rglob("*.wav")}
    assert rates == {8_000, 16_000}


def test_same_loudness_brings_all_to_one_mean_square(systems: list[Path], tmp_path: Path) -> None:
    wave = np.zeros(1600)
    wave[800] = 0.5  # cannot be brought to -26 dB: its peak would clip
    for name, peaky, level_db in (("a", False, -26.0), ("b", True, 10 * np.log10(0.98**2 / 1600))):
        if peaky:
            soundfile.write(systems[2] / "sub" / "0.wav", wave, 16_000)
        make_test(systems, tmp_path / name, "mos", checks=0, equal_loudness=True)
        for path in (tmp_path / name).rglob("*.wav"):
            samples, _ = soundfile.read(path)
            assert 10 * np.log10(np.mean(samples**2)) == pytest.approx(level_db, abs=0.05)


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_the_anchor_keeps_what_lies_below_3500_hz(rate: int) -> None:
    wave = torch.randn(rate, generator=torch.Generator().manual_seed(0)) * 0.1
    anchor = low_pass_anchor(Sound(wave=wave, sample_rate=rate))
    before, after = (torch.fft.rfft(each.double()).abs() for each in (wave, anchor.wave))
    assert torch.allclose(after[:3500], before[:3500], rtol=1e-3, atol=1e-3)
    assert (after[4000:] < 1e-3 * before[4000:].mean()).all()


def test_the_page_gives_a_listener_the_order_that_python_expects(
    systems: list[Path], tmp_path: Path
) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("the page's own code needs node to run here")
    make_test(systems, tmp_path / "test", "mushra", checks=0)
    data = shown(tmp_path / "test")
    listeners = ["anna", "7", "Zoë Müller", "耳", ""]
    script = resources.files("speechlm.evaluation.listening") / "listening.js"
    code = (
        f"const page = require({json.dumps(str(script))});"
        "const {test, listeners} = JSON.parse(require('fs').readFileSync(0));"
        "console.log(JSON.stringify(listeners.map((listener) => [page.planOf(test, listener),"
        " page.answersOf(test, {listener, begun: '', answers: []})])));"
    )
    ran = subprocess.run(
        [node, "-e", code],
        input=json.dumps({"test": data, "listeners": listeners}),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for listener, (plan, sent) in zip(listeners, json.loads(ran.stdout), strict=True):
        number = order_of(listener, len(data["orders"]))
        assert sent["order"] == number
        assert (sent["format"], sent["test"]) == (data["format"], data["test"])
        for heard, (index, *places) in zip(plan, data["orders"][number], strict=True):
            trial = data["trials"][index]
            assert heard == {
                "trial": trial["id"],
                "clips": [trial["clips"][place] for place in places],
                "reference": trial["reference"],
            }
