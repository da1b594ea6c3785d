from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from small_bundle import question
from small_duplex import noise, small_duplex

from speechlm import SpeechLM
from speechlm.cli.main import main
from speechlm.dialogue.messages import ResponseEnded, ResponseStarted, Sound, Truncate
from speechlm.dialogue.settings import SessionSettings
from speechlm.dialogue.simulate import Dialogue, _Stage, simulate
from speechlm.dialogue.users import Heard, RecordedUser, ScriptedUser, read_scripts
from speechlm.errors import ConfigError

RATE = 16_000
SETTINGS = SessionSettings(input_rate=RATE, output_rate=RATE, seed=3)


@pytest.fixture(scope="module")
def bundle() -> SpeechLM:
    return small_duplex()


def scripted(tmp_path: Path, *lines: str) -> ScriptedUser:
    path = tmp_path / "talk.yaml"
    path.write_text("\n".join(["user:", *(f"- {line}" for line in lines)]), encoding="utf-8")
    (script,) = read_scripts(path)
    return ScriptedUser(script, RATE)


def of(dialogue: Dialogue, kind: str) -> list[dict[str, Any]]:
    return [event for event in dialogue.events if event["type"] == kind]


def test_a_recorded_user_is_recorded_again_sample_for_sample(bundle: SpeechLM) -> None:
    wave = torch.from_numpy(noise(1.2345))
    dialogue = simulate(bundle, RecordedUser(wave), SETTINGS)
    assert torch.equal(dialogue.input, wave)
    assert len(dialogue.output) == len(wave)
    (started, *_), (stopped, *_) = of(dialogue, "model.started"), of(dialogue, "model.stopped")
    begin, end = round(started["time_s"] * RATE), round(stopped["time_s"] * RATE)
    assert not dialogue.output[:begin].any()
    assert dialogue.output[begin].abs() > 0
    assert end == len(wave)
    again = simulate(bundle, RecordedUser(wave), SETTINGS)
    assert torch.equal(again.output, dialogue.output)
    assert again.events == dialogue.events


def test_nothing_is_said_before_it_could_have_been_computed(bundle: SpeechLM) -> None:
    """What is heard from a moment on changes nothing of what was said until then."""
    wave = torch.from_numpy(noise(1.5))
    other = torch.cat([wave[:RATE], torch.from_numpy(noise(0.5, seed=1))])
    first = simulate(bundle, RecordedUser(wave), SETTINGS).output
    second = simulate(bundle, RecordedUser(other), SETTINGS).output
    assert int((first != second).nonzero()[0]) >= RATE


def test_a_scripted_user_waits_for_the_model_and_speaks_over_it(
    bundle: SpeechLM, tmp_path: Path
) -> None:
    user = scripted(
        tmp_path,
        f"play: {question()}",
        "until: answer",
        "wait: 0.3",
        f"{{play: {question()}, as: backchannel}}",
    )
    user.patient = False  # this model never rests
    dialogue = simulate(bundle, user, replace(SETTINGS, max_answer_s=1.0))
    first, second = of(dialogue, "user.started")
    answers = [event["time_s"] for event in of(dialogue, "model.started")]
    assert first["time_s"] == 0
    assert second["as"] == "backchannel"
    (stopped, _) = of(dialogue, "user.stopped")
    # The model speaks from the beginning, so the user waits for nothing but the pause.
    assert second["time_s"] == pytest.approx(max(stopped["time_s"], answers[0]) + 0.3, abs=0.021)
    begin = round(second["time_s"] * RATE)
    length = round(stopped["time_s"] * RATE)
    assert torch.equal(dialogue.input[begin : begin + length], dialogue.input[:length])


def test_until_waits_for_an_answer_to_what_was_said_and_not_for_ever(tmp_path: Path) -> None:
    user = scripted(tmp_path, "wait: 0.1", "{until: answer, within: 0.5}", "wait: 0.1")
    alone = Heard(num_answers=0, silent_s=0.0)
    assert sum(len(user.speak(320, alone)) for _ in range(100)) == round(0.7 * RATE)
    assert [event["type"] for event in user.log] == ["user.waited_in_vain"]
    user = scripted(tmp_path, f"play: {question()}", "until: answer", "wait: 0.1")
    said = len(ScriptedUser(read_scripts(tmp_path / "talk.yaml")[0], RATE)._waves[0])
    before = Heard(num_answers=2, silent_s=0.0)  # both began before the question did
    assert len(user.speak(said + 160, before)) == said + 160
    assert len(user.speak(160, Heard(num_answers=3, silent_s=0.0))) == 160
    assert sum(len(user.speak(320, before)) for _ in range(9)) == round(0.1 * RATE) - 160
    user = scripted(tmp_path, "until: silence")
    assert len(user.speak(320, Heard(num_answers=1, silent_s=0.9))) == 320
    assert len(user.speak(320, Heard(num_answers=1, silent_s=1.0))) == 0


def test_a_cancelled_answer_is_heard_no_more_and_the_model_is_told() -> None:
    stage = _Stage(RATE)
    ids = {"response_id": "r", "item_id": "i"}
    stage.take(ResponseStarted(**ids, previous_item_id=None, modality="audio"))
    stage.take(Sound(**ids, samples=np.full(1000, 0.5, np.float32)))
    stage.play(torch.zeros(320))
    stage.take(ResponseEnded(**ids, status="cancelled", reason="turn_detected"))
    stage.play(torch.zeros(320))
    assert stage.answers() == [Truncate(item_id="i", heard_s=0.02)]
    assert stage.answers() == []
    dialogue = stage.dialogue(RecordedUser(torch.zeros(0)))
    assert dialogue.output.count_nonzero() == 320
    assert [(event["time_s"], event["type"]) for event in dialogue.events] == [
        (0.0, "ResponseStarted"),
        (0.0, "model.started"),
        (0.02, "ResponseEnded"),
        (0.02, "model.stopped"),
    ]


def test_the_command_writes_dialogues_in_time_with_themselves(
    bundle: SpeechLM, tmp_path: Path
) -> None:
    bundle.save_pretrained(tmp_path / "bundle")
    for name in ("pause/1", "pause/2"):
        (tmp_path / "users" / name).mkdir(parents=True)
        soundfile.write(tmp_path / "users" / name / "input.wav", noise(0.7, 24_000), 24_000)
    words = [str(tmp_path / "bundle"), str(tmp_path / "users"), "-o", str(tmp_path / "out")]
    assert main(["simulate", *words, "--temperature", "1"]) == 0
    for name in ("pause/1", "pause/2"):
        folder = tmp_path / "out" / name
        given, _ = soundfile.read(folder / "input.wav")
        said, rate = soundfile.read(folder / "output.wav")
        both, _ = soundfile.read(folder / "stereo.wav")
        assert rate == RATE
        assert len(given) == len(said) == round(0.7 * RATE)
        assert np.array_equal(both, np.stack([given, said], axis=1))
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        assert events == sorted(events, key=lambda event: event["time_s"])
        assert "ResponseStarted" in [event["type"] for event in events]
        assert soundfile.info(folder / "output.wav").subtype == "PCM_16"
    first, second = (tmp_path / "out" / f"pause/{number}/output.wav" for number in (1, 2))
    assert first.read_bytes() == second.read_bytes()  # one seed, one user


def test_the_picture_shows_both_sides(bundle: SpeechLM, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from speechlm.dialogue.recorded import write_dialogue

    write_dialogue(tmp_path, simulate(bundle, RecordedUser(torch.from_numpy(noise(0.5))), SETTINGS))
    from matplotlib.image import imread

    picture = imread(tmp_path / "timeline.png")[:, :, :3]
    for colour in ((0x3A, 0x6E, 0xA5), (0xC8, 0x55, 0x3D)):
        near = np.abs(picture * 255 - np.array(colour)).max(axis=2) < 3
        assert near.sum() > 500


def test_real_time_takes_as_long_as_the_dialogue(bundle: SpeechLM) -> None:
    import time

    began = time.perf_counter()
    dialogue = simulate(bundle, RecordedUser(torch.zeros(RATE // 2)), SETTINGS, real_time=True)
    assert time.perf_counter() - began >= 0.5
    assert len(dialogue.output) == RATE // 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- say: a", r"expected a dialogue with id and user, got list"),
        ("user: 3", r"dialogue 1: expected user, a list of steps"),
        ("user: [{say: a, play: b}]", r"step 1: expected one of say, play, wait, until"),
        ("user: [{wait: soon}]", r"step 1: expected wait in seconds, got 'soon'"),
        ("user: [{until: dawn}]", r"step 1: expected until answer or silence, got 'dawn'"),
        ("user: [{wait: 1, as: rest}]", r"step 1: wait does not take as"),
        ("{user: [], mood: bad}", r"expected id, voice and user, got mood"),
        ("dialogues: [{id: a, user: []}, {id: a, user: []}]", r"an id of its own .* got 'a'"),
        ("{id: ../a, user: []}", r"an id of its own .* got '\.\./a'"),
        ("user: [", r"expected a script as YAML or JSON"),
    ],
)
def test_a_script_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "talk.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_scripts(path)


def test_an_embedded_voice_says_what_a_script_says(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    user = scripted(tmp_path, "say: hello", "wait: 0.25")
    wave = torch.cat([user.speak(320, Heard(num_answers=0, silent_s=0.0)) for _ in range(200)])
    assert wave.abs().max() > 0.5
    assert not wave[-round(0.25 * RATE) :].any()
    assert [event["type"] for event in user.log] == ["user.started", "user.stopped"]
