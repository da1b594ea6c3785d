"""Reading what listeners sent: checked against the key, judged by its checks of attention."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechlm.errors import CorpusError, InputError
from speechlm.evaluation.listening.kinds import KINDS
from speechlm.evaluation.listening.making import FORMAT, KEY_NAME, order_of
from speechlm.files import read_json

SLIDER_SLACK = 5
"""How far a slider may stand from where a check asks for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rating:
    """What one listener says of one recording, or of two against each other."""

    system: str
    """Of two, the one that is compared with the first system."""
    item: str
    value: float
    """Of two, positive if ``system`` is better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listener:
    """All that one listener answered."""

    id: str
    ratings: tuple[Rating, ...]
    answered: int
    """Trials, checks included."""
    failed_checks: int


def read_key(test: Path) -> dict[str, Any]:
    """What the recordings of a test are.

    Raises:
        InputError: The folder holds no listening test.
    """
    path = test / KEY_NAME
    if not path.is_file():
        raise InputError(f"{path} is missing: expected what 'speechlm evaluate listen make' wrote")
    key: dict[str, Any] = read_json(path)
    return key


def read_answers(key: Mapping[str, Any], paths: Sequence[Path]) -> tuple[list[Listener], int]:
    """Read files of answers.

    Returns:
        One a listener, by id, the one with the most answers where several came; and how many
        files that leaves out.

    Raises:
        CorpusError: A file holds no answers, or those to another test, or not what the page
            asked its listener.
    """
    found: dict[str, Listener] = {}
    for path in paths:
        listener = _read(key, path)
        known = found.get(listener.id)
        if known is None or known.answered < listener.answered:
            found[listener.id] = listener
    if not found:
        raise InputError("expected files of answers, answers-*.json, got none")
    return sorted(found.values(), key=lambda each: each.id), len(paths) - len(found)


def _read(key: Mapping[str, Any], path: Path) -> Listener:
    try:
        sent = json.loads(path.read_text(encoding="utf-8"))
        if sent["format"] != FORMAT:
            raise CorpusError(f"{path}: expected the format {FORMAT}, got {sent['format']}")
        if sent["test"] != key["test"]:
            raise CorpusError(
                f"{path}: answers to the test {sent['test']}, but the key is of {key['test']}"
            )
        name, answers = str(sent["listener"]), sent["answers"]
        rows = [(row["trial"], list(row["clips"]), list(row["scores"])) for row in answers]
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{path}: not the answers of a listening test ({error!r})") from error
    plan = key["orders"][order_of(name, len(key["orders"]))]
    if len(rows) > len(plan):
        raise CorpusError(f"{path}: {len(rows)} answers to {len(plan)} trials")
    ratings, failed = [], 0
    for (trial, clips, scores), (index, *places) in zip(rows, plan, strict=False):
        asked = key["trials"][index]
        heard = [asked["clips"][place] for place in places]
        if trial != asked["id"] or clips != heard:
            raise CorpusError(f"{path}: {trial} is not what the page asked {name} at its place")
        _check_scores(key, path, trial, scores, len(clips))
        if trial in key["checks"]:
            wanted = dict(zip(asked["clips"], key["checks"][trial], strict=False))
            failed += not _passes(wanted, clips, scores)
        else:
            ratings += _ratings(key, clips, scores)
    return Listener(id=name, ratings=tuple(ratings), answered=len(rows), failed_checks=failed)


def _check_scores(
    key: Mapping[str, Any], path: Path, trial: str, scores: Sequence[object], width: int
) -> None:
    sliders = key["kind"] == "mushra"
    allowed = range(101) if sliders else KINDS[key["kind"]].scale
    if len(scores) != (width if sliders else 1) or not all(
        type(score) is int and score in allowed for score in scores
    ):
        raise CorpusError(f"{path}: {trial}: expected answers of the scale, got {scores}")


def _passes(wanted: Mapping[str, int], clips: Sequence[str], scores: Sequence[int]) -> bool:
    """Of sliders each recording tells its own place; else the one answer is told once."""
    if len(wanted) == len(scores) == len(clips) > 1:
        return all(
            abs(score - wanted[clip]) <= SLIDER_SLACK
            for clip, score in zip(clips, scores, strict=True)
        )
    return scores == list(wanted.values())


def _ratings(key: Mapping[str, Any], clips: Sequence[str], scores: Sequence[int]) -> list[Rating]:
    heard = [key["clips"][clip] for clip in clips]
    if not KINDS[key["kind"]].paired:
        return [
            Rating(system=each["system"], item=each["item"], value=score)
            for each, score in zip(heard, scores, strict=True)
        ]
    # Scores are of the second heard against the first heard.
    turned = heard[1]["system"] == key["systems"][0]
    other = heard[0] if turned else heard[1]
    return [
        Rating(
            system=other["system"], item=other["item"], value=-scores[0] if turned else scores[0]
        )
    ]
