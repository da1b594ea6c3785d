"""URO-Bench: does a spoken dialogue model understand, reason and talk.

Variants are ``SET/FIGURE``; ``SET/score``, 0 to 100, is what averages are made of.

Source:
    Yan et al. 2025, arXiv:2502.17810.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from speechlm.evaluation.answers.llm_judge import JudgeError, correctness_prompt, quality_prompt
from speechlm.evaluation.answers.text_scorers import is_empty
from speechlm.evaluation.tasks.items import RIGHT, WRONG, Item
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.judged import (
    NO_JUDGE,
    Figures,
    ask_judge,
    configured_judge,
    rating_figures,
    yes_no_figures,
)
from speechlm.evaluation.tasks.results import Result
from speechlm.evaluation.tasks.set_means import mean_row
from speechlm.evaluation.tasks.spoken_replies import questions_sha256, reply_texts
from speechlm.evaluation.tasks.uro_data import ASKED_FOR, SETS, Dialogue, read_texts, read_uro
from speechlm.progress import say

REPEATED_WER = 0.5
"""A repetition with more errors counts nothing."""
NEEDS_EARS = "not measured: a mood or a song is judged by ear, which no embedded part can"
NO_CHINESE = (
    "the embedded recognizer hears English alone: expected a transcript of the answers, "
    "asr_text.jsonl"
)


def run_uro(job: Job) -> Iterator[Result]:
    """Answers to spoken questions and dialogues, in sets of forty kinds."""
    judge = configured_judge(job.seed)
    answers = None if job.system.is_bundle else job.system.recordings
    dialogues = read_uro(job.given, answers)
    graded = [dialogue for dialogue in dialogues if SETS[dialogue.set].kind is not None]
    sha256 = questions_sha256([turn for dialogue in dialogues for turn in dialogue.turns])
    replies, asr = _replies(job, graded, sha256)
    own = {
        name: read_texts(answers, name, "pred_text.jsonl") if answers is not None else {}
        for name in {dialogue.set for dialogue in graded}
    }
    verdicts: Mapping[str, Item] = {}
    missing = NO_JUDGE
    if judge is not None:
        prompts = {}
        for dialogue in graded:
            heard = [replies[turn.id] for turn in dialogue.turns]
            if SETS[dialogue.set].kind != "repeat" and not any(map(_is_nothing, heard)):
                said = [str(reply.note["response"]) for reply in heard]
                prompts[dialogue.id] = judge_prompt(dialogue, said)
        try:
            verdicts = ask_judge(job, judge, prompts)
            missing = ""
        except JudgeError as error:
            say(f"{job.name}: {error}")
            missing = str(error)

    def score(left: Sequence[Dialogue]) -> Iterator[Item]:
        for dialogue in left:
            heard = [replies[turn.id] for turn in dialogue.turns]
            text = own[dialogue.set].get(dialogue.id.rpartition("/")[2])
            yield grade(dialogue, heard, verdicts.get(dialogue.id), text, judged=not missing)

    name = judge.name if judge is not None and not missing else None
    texts = repr([(item.note, item.error) for item in replies.values()]) + repr(sorted(own.items()))
    items = job.run_items(
        graded,
        score,
        sha256,
        "answers",
        asr=asr,
        judge=name or "",
        replies=hashlib.sha256(texts.encode()).hexdigest(),
    )
    yield from job.rows(items, sha256, asr=asr, judge=name)
    blank = job.row(data_sha256=sha256, asr=asr, judge=name)
    for each in dict.fromkeys(dialogue.set for dialogue in dialogues):
        kind = SETS[each].kind
        why = NEEDS_EARS if kind is None else "" if kind == "repeat" else missing
        if why:
            yield replace(blank, variant=f"{each}/score", error=why)
    present = {dialogue.set for dialogue in dialogues}
    for group, names in groups().items():
        if present >= set(names):
            parts = {each: (1.0, ("score",)) for each in names}
            yield mean_row(replace(blank, variant=group), items, parts, job.seed)


def groups() -> dict[str, list[str]]:
    """The sets of each average: an ability, track and language; a track and language."""
    found: dict[str, list[str]] = {}
    for name, each in SETS.items():
        track = f"{each.track}_{each.language}"
        found.setdefault(f"{each.ability}/{track}", []).append(name)
        found.setdefault(f"overall/{track}", []).append(name)
    return found


def _replies(job: Job, dialogues: Sequence[Dialogue], sha256: str) -> tuple[dict[str, Item], str]:
    """Answers by the ids of turns; each turn is answered alone."""
    deaf = {
        turn.id
        for dialogue in dialogues
        for turn in dialogue.turns
        if SETS[dialogue.set].language == "zh" and turn.response is None
    }
    heard = [turn for dialogue in dialogues for turn in dialogue.turns if turn.id not in deaf]
    found, asr = reply_texts(job, heard, sha256)
    items = {item.id: item for item in found}
    return items | {name: Item(id=name, error=NO_CHINESE) for name in sorted(deaf)}, asr


def judge_prompt(dialogue: Dialogue, answers: Sequence[str]) -> str:
    """What a judge is asked about the answers of a dialogue."""
    each = SETS[dialogue.set]
    turns = [(turn.prompt, text) for turn, text in zip(dialogue.turns, answers, strict=True)]
    if each.kind == "correct":
        return correctness_prompt(turns[0][0], dialogue.references[0], turns[0][1])
    asked_for = ""
    if each.kind is not None and each.kind in ASKED_FOR:
        key, sentence = ASKED_FOR[each.kind]
        asked_for = sentence.format(dialogue.row.get(key, ""))
    references = dialogue.references if each.reference else ()
    return quality_prompt(turns, references=references, asked_for=asked_for)


def _is_nothing(reply: Item) -> bool:
    return bool(reply.error) or is_empty(str(reply.note["response"]))


def grade(
    dialogue: Dialogue,
    replies: Sequence[Item],
    verdict: Item | None,
    own_text: str | None,
    *,
    judged: bool,
) -> Item:
    """Every figure of the answers of a dialogue.

    Args:
        replies: To its turns.
        verdict: A judge's; None where none was asked, as of an answer of no words.
        own_text: What the model wrote where it also speaks.
        judged: Whether there is a judge: an answer of no words then scores 0.
    """
    name = dialogue.set
    each = SETS[name]
    item = Item(id=dialogue.id)
    failed = next((reply for reply in replies if reply.error), None)
    if failed is not None:
        return replace(item, error=f"{failed.id}: {failed.error}")
    said = [str(reply.note["response"]) for reply in replies]
    prompts = [turn.prompt for turn in dialogue.turns]
    note: dict[str, Any] = {"prompt": prompts, "response": said}
    silent = any(is_empty(text) for text in said)
    figures: Figures = {f"{name}/empty": RIGHT if silent else WRONG}
    if own_text is not None:
        errors, length = text_errors(own_text, said[0], each.language)
        note["own_text"] = own_text
        if length:
            unit = "wer" if each.language == "en" else "cer"
            figures[f"{name}/asr_{unit}"] = 100.0 * errors, float(length)
            figures[f"{name}/asr_{unit}_mean"] = 100.0 * errors / length, 1.0
    if each.kind == "repeat":
        wanted = dialogue.references[0]
        note["reference"] = wanted
        figures[f"{name}/score"] = _repeated(wanted, said[0], each.language), 1.0
        figures[f"{name}/published_score"] = _repeated(said[0], wanted, each.language), 1.0
    elif silent and judged:
        figures[f"{name}/score"] = WRONG
    elif verdict is not None:
        raw = verdict.note["raw"]
        note |= {"judge": verdict.note, "judge_error": verdict.error}
        if each.kind == "correct":
            figures |= yes_no_figures(name, raw)
            if f"{name}/judge_share" in figures:
                figures[f"{name}/score"] = figures[f"{name}/judge_share"]
        else:
            figures |= rating_figures(name, raw)
            if f"{name}/judge_1_5" in figures:
                figures[f"{name}/score"] = 20.0 * figures[f"{name}/judge_1_5"][0], 1.0
    return replace(item, figures=figures, note=note)


def _repeated(reference: str, text: str, language: str) -> float:
    """100 less the percentage of errors; 0 where more than half is wrong, or nothing was said."""
    errors, length = text_errors(reference, text, language)
    rate = errors / length if length else 1.0
    return 100.0 * (1.0 - rate) if rate <= REPEATED_WER else 0.0


def text_errors(reference: str, text: str, language: str) -> tuple[int, int]:
    """Wrong words of an English text, characters of a Chinese one; and how many there should be.

    English is normalised as Whisper's authors do, without their list of British spellings;
    Chinese loses punctuation and spaces, and its numbers stay as they are written.
    """
    from torchaudio.functional import edit_distance

    wanted, said = (_units(one, language) for one in (reference, text))
    return edit_distance(wanted, said), len(wanted)


def _units(text: str, language: str) -> list[str]:
    if language == "en":
        return str(_normalizer()(text)).split()
    return [char for char in text.lower() if unicodedata.category(char)[0] not in "PZC"]


@cache
def _normalizer() -> Any:
    from transformers.models.whisper import english_normalizer

    library: Any = english_normalizer
    return library.EnglishTextNormalizer({})
