"""The callers of ``speechlm bench serve``: what they ask, what they note, what is made of it."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("websockets")
pytest.importorskip("silero_vad")
pytest.importorskip("onnxruntime")

import torch
from brief_bundle import brief_bundle
from realtime_server import serving

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.dialogue.load.caller import Answer, Call, Turn
from speechlm.dialogue.load.figures import level_figures, sessions_held, slack_s, turn_figures
from speechlm.dialogue.load.questions import RATE, Question, read_questions, speak_questions
from speechlm.dialogue.load.report import draw, table
from speechlm.dialogue.load.running import realtime_url, run_level
from speechlm.dialogue.local import LocalService
from speechlm.dialogue.settings import PRESETS
from speechlm.errors import InputError

PIECE = round(0.08 * RATE)


def question(seconds: float = 1.0) -> Question:
    """Human words."""
    waves = [load_audio(clip.path, RATE) for clip in list(human_clips("answers").values())[:6]]
    wave = torch.cat(waves)[: round(seconds * RATE)]
    return Question(id="q", samples=wave, speech=(0, len(wave) - 1))


def answer(*came_at: float, frame_p95: float = 10.0) -> Answer:
    """Pieces of 80 ms that came at these times."""
    return Answer(
        deltas=[(at, PIECE) for at in came_at],
        sound=[bytes(2 * PIECE)] * len(came_at),
        status="completed",
        figures={"frame": 20.0, "frame_p95": frame_p95},
    )


def turn(given: Answer | None) -> Turn:
    return Turn(
        caller=0, question=question(), onset_at=8.0, said_at=9.0, stopped_at=9.5, answer=given
    )


def level(*calls: Call) -> dict[str, object]:
    return level_figures(calls, generator_cpu=0.1, server_cpu=None)


def test_a_player_has_a_hole_when_a_piece_comes_after_what_it_kept() -> None:
    assert slack_s(answer(10.0)) == pytest.approx(0.1)
    assert slack_s(answer(10.0, 10.08, 10.16)) == pytest.approx(0.1)
    assert slack_s(answer(10.0, 10.15, 10.16)) == pytest.approx(0.03)
    assert slack_s(answer(10.0, 10.0, 10.0, 10.35)) == pytest.approx(-0.01)


def test_a_turn_is_measured_from_the_wire() -> None:
    figures = turn_figures(turn(answer(9.6, 9.68, 9.76)))
    assert figures["stopped_to_audio"] == pytest.approx(100)
    assert figures["end_to_audio"] == pytest.approx(600)
    assert figures["policy_wait"] == pytest.approx(500)
    assert figures["real_time_factor"] == pytest.approx(1.0)
    assert figures["answer_s"] == pytest.approx(0.24)
    assert figures["noticed_to_silence"] is None


def test_a_turn_that_was_broken_in_on_tells_when_it_fell_silent() -> None:
    cut = turn(answer(9.6, 9.8, 10.1))
    cut.breaks_in, cut.cut_onset_at, cut.cut_noticed_at = True, 9.9, 10.15
    figures = turn_figures(cut)
    assert figures["onset_to_silence"] == pytest.approx(200)
    assert figures["noticed_to_silence"] == 0.0, "it was silent before"
    assert figures["slack"] is None, "its end was meant to come late"


def test_a_level_is_held_only_if_everybody_was_served_in_time() -> None:
    good = Call(turns=[turn(answer(10.0, 10.05))])
    late = Call(turns=[turn(answer(10.0, 10.5))])
    slow = Call(turns=[turn(answer(10.0, 10.05, frame_p95=25.0))])
    levels = [
        level(good),
        level(good, good),
        level(good, good, late),
        level(good, good, good, slow),
        level(good, Call(turns=[turn(None)])),
        level(good, Call(refused="session_limit_reached")),
        level(Call()),
    ]
    assert [one["held"] for one in levels] == [True, True] + [False] * 5
    assert levels[2]["stuttered"] == pytest.approx(1 / 3)
    assert sessions_held(levels) == 2
    assert sessions_held([]) == 0
    shown = table(levels).splitlines()
    assert len(shown) == 1 + len(levels)
    assert "1 session_limit_reached" in shown[6]


def test_the_figures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(tmp_path / "bench.png", [level(Call(turns=[turn(answer(10.0))])), level(Call())])
    draw(tmp_path / "none.png", [level(Call())])
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_questions_of_a_corpus_are_those_nobody_was_trained_on(tmp_path: Path) -> None:
    clip = next(iter(human_clips("answers").values())).path
    shutil.copy(clip, tmp_path / "a.flac")
    rows = [
        {"id": "yes", "audio": "a.flac", "text": "Yes"},
        {"id": "old", "audio": "a.flac", "split": "train", "reply": "yes"},
        {
            "id": "new",
            "audio": "a.flac",
            "split": "test",
            "reply": "yes",
            "words": [["is", 0.1, 0.2], ["it", 0.2, 0.3]],
        },
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "corpus.jsonl").write_text(lines, encoding="utf-8")
    found = read_questions(tmp_path, 5, seed=0)
    assert [one.id for one in found.asked] == ["new"]
    assert found.asked[0].speech == (2400, 7200)
    assert found.asked[0].expected == "yes"
    assert found.answers == ("yes",)


def test_recordings_alone_are_questions_without_a_right_answer(tmp_path: Path) -> None:
    clip = next(iter(human_clips("answers").values())).path
    shutil.copy(clip, tmp_path / "a.flac")
    found = read_questions(tmp_path, 5, seed=0)
    assert found.answers == ()
    (one,) = found.asked
    assert one.expected is None
    assert 0 < one.speech[0] < one.speech[1] < len(one.samples), "silence around it is not speech"
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(InputError):
        read_questions(tmp_path, 5, seed=0)


def test_questions_are_spoken_where_there_are_no_recordings() -> None:
    pytest.importorskip("espeakng_loader")
    found = speak_questions(3, seed=0)
    assert len({one.id for one in found.asked}) == 3
    for one in found.asked:
        assert one.expected in found.answers
        assert 0 <= one.speech[0] < one.speech[1] < len(one.samples)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://127.0.0.1:8000/", "ws://127.0.0.1:8000/v1/realtime"),
        ("https://example.org", "wss://example.org/v1/realtime"),
        ("localhost:9", "ws://localhost:9/v1/realtime"),
        ("ws://h/v1/realtime?model=m", "ws://h/v1/realtime?model=m"),
    ],
)
def test_a_server_is_named_by_its_page_or_its_endpoint(given: str, expected: str) -> None:
    assert realtime_url(given) == expected


def test_callers_ask_break_in_and_are_refused_where_there_is_no_room() -> None:
    """One of two callers is let in; its first answer is broken in on by its second question."""

    async def calls() -> tuple[dict[str, object], list[Call]]:
        async with (
            LocalService(brief_bundle(), max_sessions=1) as service,
            serving(service, max_answer_s=1.2) as served,
        ):
            return await asyncio.to_thread(
                run_level,
                served.url,
                [question(1.3)],
                2,
                num_questions=2,
                breaks_in=1.0,
                turns=PRESETS["quick"],
            )

    figures, each = asyncio.run(calls())
    assert figures["refusals"] == {"session_limit_reached": 1}
    assert not figures["held"]
    (call,) = (one for one in each if one.refused is None)
    assert call.errors == {}
    first, second = call.turns
    assert first.answer is not None
    assert second.answer is not None
    assert first.answer.status == "cancelled"
    assert first.cut_onset_at is not None
    assert first.cut_noticed_at is not None
    assert first.answer.deltas[-1][0] < first.cut_noticed_at, "nothing comes once it is noticed"
    assert second.answer.num_samples / RATE == pytest.approx(1.2, abs=0.2)
    for one in call.turns:
        assert one.said_at is not None
        assert one.stopped_at is not None
        assert one.said_at < one.stopped_at < one.answer.deltas[0][0]
        assert one.answer.figures is not None
        assert one.answer.figures["frame"] == pytest.approx(20.0)
