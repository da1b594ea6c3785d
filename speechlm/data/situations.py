"""Moments of made dialogues, each cut out as Full-Duplex-Bench has them: a folder a sample.

``input.wav`` is the user alone, before it half a second, after it the time that there was for an
answer; beside it stands when what happens. What ``speechlm evaluate --suite
fdb=FOLDER`` reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechlm.audio import save_audio
from speechlm.data.corpus import Recording
from speechlm.data.events import Event
from speechlm.data.rendering import SAMPLE_RATE
from speechlm.files import write_folder_aside, write_json

LEAD_S = 0.5
"""Of the recording before the user's first word, if they were silent for so long."""
ANSWER_S = 3.0
"""After their last one, unless they go on sooner."""
ANSWERED_S = 0.2
"""Where the published annotation of a turn has the answer, after the end of the question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """A stretch of a dialogue in which one thing happens."""

    kind: str
    """The folder that it belongs to, as Full-Duplex-Bench 1.0 and 1.5 call it."""
    start_s: float
    end_s: float
    name: str
    """Of the annotation's file."""
    annotation: Any
    """Its content, with times from the begin of the stretch."""


def write_situations(
    folder: Path, recordings: Sequence[Recording], events: Mapping[str, Sequence[Event]]
) -> None:
    """Cut what happens in dialogues out of them; a folder that is there is replaced.

    Args:
        folder: Gets a folder a kind, and in it one a sample.
        recordings: The users' channels.
        events: What happens, by the id of the dialogue.
    """
    with write_folder_aside(folder) as aside:
        counts: dict[str, int] = {}
        for recording in recordings:
            wave = recording.load(SAMPLE_RATE)
            duration_s = len(wave) / SAMPLE_RATE
            for found in find_situations(events[recording.id.removesuffix(".user")], duration_s):
                number = counts[found.kind] = counts.get(found.kind, 0) + 1
                here = aside / found.kind / str(number)
                here.mkdir(parents=True)
                first, last = (
                    round(time_s * SAMPLE_RATE) for time_s in (found.start_s, found.end_s)
                )
                save_audio(here / "input.wav", wave[first:last], SAMPLE_RATE)
                write_json(here / found.name, found.annotation)


def find_situations(events: Sequence[Event], duration_s: float) -> Iterator[Situation]:
    """The situations of a dialogue that lasts ``duration_s``."""
    turns = [event for event in events if event.kind == "turn"]
    annotation: Any
    for place, turn in enumerate(turns):
        answered = place + 1 < len(turns) and turns[place + 1].speaker == "model"
        if turn.speaker == "model" or not answered:
            continue
        within = [e for e in events if turn.start_s <= e.start_s <= turn.end_s]
        cuts_in = any(event.kind == "interruption" for event in within)
        pause = next((event for event in within if event.kind == "pause"), None)
        if cuts_in:
            asked = next(e for e in reversed(turns[:place]) if e.speaker == "user")
            cut = _stretch(events, asked, turn, duration_s)
            told = {"context": asked.text, "interrupt": turn.text}
            annotation = [{**told, "timestamp": _times(turn.start_s, turn.end_s, cut)}]
            yield _situation("user_interruption", cut, "interrupt.json", annotation)
            continue
        cut = _stretch(events, turn, turn, duration_s)
        if pause is not None:
            kind, name, label = "pause_handling", "pause.json", "[PAUSE]"
            times = _times(pause.start_s, pause.end_s, cut)
        else:
            kind, name, label = "smooth_turn_taking", "turn_taking.json", "[TURN-TAKING]"
            times = _times(turn.end_s, turn.end_s + ANSWERED_S, cut)
        yield _situation(kind, cut, name, [{"text": label, "timestamp": times}])
    for event in events:
        if event.kind == "backchannel":
            users = [turn for turn in turns if turn.speaker == "user"]
            asked = next(turn for turn in reversed(users) if turn.start_s < event.start_s)
            cut = _stretch(events, asked, event, duration_s)
            told = {"context_text": asked.text, "current_turn_text": event.text}
            annotation = {**told, "timestamps": _times(event.start_s, event.end_s, cut)}
            yield _situation("user_backchannel", cut, "metadata.json", annotation)


def _situation(kind: str, cut: tuple[float, float], name: str, annotation: Any) -> Situation:
    return Situation(kind=kind, start_s=cut[0], end_s=cut[1], name=name, annotation=annotation)


def _stretch(
    events: Sequence[Event], first: Event, last: Event, duration_s: float
) -> tuple[float, float]:
    """From before the user's ``first`` event to the answer after their ``last``."""
    spoken = [e for e in events if e.speaker == "user" and e.kind in ("turn", "backchannel")]
    before = [event.end_s for event in spoken if event.end_s <= first.start_s]
    after = [event.start_s for event in spoken if event.start_s >= last.end_s]
    start_s = max([0.0, first.start_s - LEAD_S, *before])
    return start_s, min([duration_s, last.end_s + ANSWER_S, *after])


def _times(start_s: float, end_s: float, cut: tuple[float, float]) -> list[float]:
    return [round(start_s - cut[0], 3), round(end_s - cut[0], 3)]
