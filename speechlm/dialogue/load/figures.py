"""What the callers experienced, as figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from speechlm.dialogue.load.caller import Answer, Call, Turn
from speechlm.dialogue.load.questions import RATE

BUFFER_S = 0.1
"""What a player keeps before it begins: sound that comes later than this leaves a hole."""
SHARES = (50, 95, 99)

JSON = dict[str, Any]


def turn_figures(turn: Turn) -> JSON:
    """Of one turn, ms unless said otherwise; None where there is none."""
    answer = turn.answer
    first_at = answer.deltas[0][0] if answer is not None and answer.deltas else None
    server = (answer.figures if answer is not None else None) or {}
    figures: JSON = {
        "caller": turn.caller,
        "question": turn.question.id,
        "status": "unanswered" if answer is None else answer.status or "unfinished",
        "responses": turn.num_responses,
        "stopped_to_audio": _ms(turn.stopped_at, first_at),
        "end_to_audio": _ms(turn.said_at, first_at),
        "policy_wait": _ms(turn.said_at, turn.stopped_at),
        "answer_s": None if answer is None else round(answer.num_samples / RATE, 3),
        "slack": None,
        "real_time_factor": None,
        "interrupted": turn.breaks_in and turn.cut_onset_at is not None,
        "noticed_to_silence": None,
        "onset_to_silence": None,
        **{
            f"server_{name}": server.get(name)
            for name in ("decision_to_units", "decision_to_audio", "frame", "frame_p95")
        },
    }
    if answer is not None and answer.deltas:
        if figures["interrupted"]:
            last_at = answer.deltas[-1][0]
            for name, since in (
                ("noticed_to_silence", turn.cut_noticed_at),
                ("onset_to_silence", turn.cut_onset_at),
            ):
                # Sound that had stopped before it was asked to has stopped at once.
                figures[name] = None if since is None else max(0.0, _ms(since, last_at) or 0.0)
        else:
            figures["slack"] = round(1000 * slack_s(answer), 3)
            figures["real_time_factor"] = round(_real_time_factor(answer), 4)
    return figures


def slack_s(answer: Answer) -> float:
    """How much earlier than needed the latest piece came, s; below 0 a player had a hole.

    The player begins :data:`BUFFER_S` after the first piece, and plays piece after piece.
    """
    needed_at = answer.deltas[0][0] + BUFFER_S
    slack = BUFFER_S
    for came_at, count in answer.deltas:
        slack = min(slack, needed_at - came_at)
        needed_at += count / RATE
    return slack


def _real_time_factor(answer: Answer) -> float:
    """Time that it took to come by time that it takes to play; the server lets sound out as it is
    heard, so 1 is the most that is well."""
    before_last = answer.num_samples - answer.deltas[-1][1]
    span_s = answer.deltas[-1][0] - answer.deltas[0][0]
    return span_s * RATE / before_last if before_last else 0.0


def level_figures(calls: Sequence[Call], *, generator_cpu: float, server_cpu: float | None) -> JSON:
    """Of so many callers at once.

    Args:
        calls: What each experienced.
        generator_cpu: Cores that the callers' process kept busy.
        server_cpu: The same of the server, where it is known.
    """
    turns = [turn_figures(turn) for call in calls for turn in call.turns]
    played = [turn["slack"] for turn in turns if turn["slack"] is not None]
    cut = [turn for turn in turns if turn["interrupted"]]
    errors = sum((call.errors for call in calls), Counter[str]())
    refusals = Counter(call.refused for call in calls if call.refused is not None)
    frames = [turn["server_frame"] for turn in turns if turn["server_frame"]]
    level: JSON = {
        "callers": len(calls),
        "turns": len(turns),
        "answered": sum(turn["answer_s"] is not None for turn in turns),
        **{
            name: percentiles(turn[name] for turn in turns)
            for name in (
                "stopped_to_audio",
                "end_to_audio",
                "policy_wait",
                "real_time_factor",
                "noticed_to_silence",
                "onset_to_silence",
                "server_decision_to_units",
                "server_decision_to_audio",
                "server_frame_p95",
            )
        },
        "stuttered": None if not played else sum(slack < 0 for slack in played) / len(played),
        "least_slack": min(played, default=None),
        "frame": max(frames, default=None),
        "interrupted": len(cut),
        "cancelled": sum(turn["status"] == "cancelled" for turn in cut),
        "errors": dict(errors),
        "refusals": dict(refusals),
        "late_ms": round(1000 * max((call.late_s for call in calls), default=0.0), 1),
        "generator_cpu": round(generator_cpu, 3),
        "server_cpu": None if server_cpu is None else round(server_cpu, 3),
        "each_turn": turns,
    }
    level["held"] = _held(level)
    return level


def _held(level: JSON) -> bool:
    """Whether all were served in time: everybody let in and answered, no hole in any answer, and
    the server's frames, where it tells of them, at p95 shorter than what they say."""
    p95 = level["server_frame_p95"]
    in_time = p95 is None or level["frame"] is None or p95["p95"] < level["frame"]
    answered = level["turns"] == level["answered"] > 0
    return bool(in_time and answered and not level["refusals"] and not level["stuttered"])


def sessions_held(levels: Iterable[JSON]) -> int:
    """The most callers at once that were all served in time."""
    return max((level["callers"] for level in levels if level["held"]), default=0)


def percentiles(values: Iterable[float | None]) -> JSON | None:
    """p50, p95 and p99 of what there is; None of nothing."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    return {f"p{share}": round(float(np.percentile(found, share)), 3) for share in SHARES}


def _ms(since: float | None, until: float | None) -> float | None:
    return None if since is None or until is None else round(1000 * (until - since), 3)
