"""``speechlm talk``: files in and out, and a sound card's two sides."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import soundfile
import torch
from small_bundle import question

from speechlm.audio import load_audio, save_audio
from speechlm.bundle import SpeechLM
from speechlm.cli.main import main
from speechlm.dialogue.devices import AHEAD, BLOCK_S, DeviceUser
from speechlm.dialogue.messages import Event, ResponseEnded
from speechlm.dialogue.settings import SessionSettings, TurnSettings
from speechlm.dialogue.simulate import simulate
from speechlm.dialogue.users import Heard

RATE = 16_000

pytest.importorskip("silero_vad")
pytest.importorskip("onnxruntime")


def asked() -> torch.Tensor:
    """A question between silences."""
    silence = torch.zeros(RATE // 2)
    return torch.cat([silence, load_audio(question(), RATE), silence, silence])


def test_a_recording_is_answered_on_its_own_clock(bundle_folder: Path, tmp_path: Path) -> None:
    save_audio(tmp_path / "asked.wav", asked(), RATE)
    answered, kept = tmp_path / "answered.wav", tmp_path / "kept"
    words = ["--input", tmp_path / "asked.wav", "--output", answered, "--record", kept]
    assert main(["talk", str(bundle_folder), *map(str, words)]) == 0
    said, rate = soundfile.read(answered, dtype="float32")
    both, _ = soundfile.read(kept / "stereo.wav", dtype="float32")
    assert rate == RATE
    assert len(both) == len(said) >= len(asked())
    lines = (kept / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    stopped = next(e["time_s"] for e in events if e["type"] == "SpeechStopped")
    assert not said[: int(stopped * RATE)].any()  # nothing before the question's end was heard
    assert said[int(stopped * RATE) :].any()
    assert any(e["type"] == "ResponseEnded" for e in events)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected a bundle"),
        (["BUNDLE", "--output", "a.wav"], "--output goes with --input"),
        (["BUNDLE", "--input", "a.wav"], "--output FILE or --record FOLDER"),
        (["BUNDLE", "--input", "none.wav", "--output", "b.wav"], "no such file"),
        (
            ["BUNDLE", "--input", "a.wav", "--output", "b.wav", "--turns", "x"],
            "unknown turn preset",
        ),
        (["nowhere", "--input", "a.wav", "--output", "b.wav"], "not a bundle"),
    ],
)
def test_words_that_cannot_be_used_give_one_line(
    words: list[str], said: str, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(bundle_folder) if word == "BUNDLE" else word for word in words]
    assert main(["talk", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_sound_card_is_played_a_block_for_each_that_it_records(bundle_folder: Path) -> None:
    user = DeviceUser(RATE)
    blocks = asked().split(round(BLOCK_S * RATE))[:-1]
    played: list[torch.Tensor] = []
    events: list[Event] = []

    def card() -> None:
        for block in blocks:
            played.append(user.exchange(block))
        user.hang_up()

    thread = threading.Thread(target=card)
    settings = SessionSettings(
        input_rate=RATE, output_rate=RATE, turns=TurnSettings(silence_s=0.3), max_answer_s=1.0
    )
    thread.start()
    model = SpeechLM.from_pretrained(bundle_folder)
    dialogue = simulate(model, user, settings, on_heard=user.play, on_event=events.append)
    thread.join()
    assert len(played) == len(blocks)
    assert torch.equal(dialogue.input, torch.cat(blocks))
    assert any(isinstance(event, ResponseEnded) for event in events)
    assert dialogue.output.any()


def test_a_late_model_leaves_silence_and_a_gate_closes_the_microphone() -> None:
    user, block = DeviceUser(RATE, gate=True), torch.ones(round(BLOCK_S * RATE))
    heard = Heard(num_answers=0, silent_s=0.0)
    for _ in range(AHEAD + 1):
        assert not user.exchange(block).any()
    assert torch.equal(user.speak(len(block), heard), block)
    user.play(block)
    assert torch.equal(user.exchange(block), block)
    assert not user.speak(len(block), heard).any()  # the loudspeaker sounds
    for _ in range(20):
        user.play(torch.zeros_like(block))
    assert torch.equal(user.speak(len(block), heard), block)


def test_what_is_not_kept_takes_no_memory(bundle_folder: Path) -> None:
    user = DeviceUser(RATE)
    for block in asked().split(round(BLOCK_S * RATE))[:20]:
        user.exchange(block)
    user.hang_up()
    settings = SessionSettings(input_rate=RATE, output_rate=RATE)
    model = SpeechLM.from_pretrained(bundle_folder)
    dialogue = simulate(model, user, settings, keep=False)
    assert not len(dialogue.input)
    assert not len(dialogue.output)
    assert not dialogue.events
