"""Which questions the model is asked, and what kind each of them is."""

from __future__ import annotations

import random
from dataclasses import dataclass

from speechlm.data.corpus import Corpus, Recording
from speechlm.data.questions import DAYS, MONTHS, NUMBERS, ORDINALS
from speechlm.errors import CorpusError

OTHER = "other questions"
"""Family of a question that is not of :mod:`speechlm.data.questions`."""

_RELATIONS = (
    ("-plus-", "sums"),
    ("-minus-", "differences"),
    ("ten-more-than-", "ten more than"),
    ("letter-", "spelling alphabet"),
    ("opposite-of-", "opposites"),
)
_KINDS = {
    **dict.fromkeys(NUMBERS, "number"),
    **dict.fromkeys(ORDINALS, "place"),
    **{day.lower(): "day" for day in DAYS},
    **{month.lower(): "month" for month in MONTHS},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One question of a corpus, with the answer that was recorded for it."""

    question: Recording
    answer: Recording
    expected: str
    """What the judge should hear."""
    family: str


def find_questions(corpus: Corpus) -> list[Asked]:
    """Every recording of a corpus that another one answers.

    Raises:
        CorpusError: There are none, or an answer is not there or has no text.
    """
    found = []
    for question in corpus:
        if question.reply is None:
            continue
        if question.reply not in corpus:
            raise CorpusError(
                f"{question.source}: its reply {question.reply!r} is not in the corpus"
            )
        answer = corpus[question.reply]
        if not answer.text:
            raise CorpusError(f"{answer.source}: expected the text of this answer, got none")
        expected = " ".join(answer.text.lower().split())
        asked = Asked(
            question=question, answer=answer, expected=expected, family=family(question.id)
        )
        found.append(asked)
    if not found:
        raise CorpusError(
            "the corpus holds no question with a recorded reply, so there is nothing to judge; "
            "expected rows with a 'reply', as 'speechlm corpus' writes them"
        )
    return found


def draw_questions(questions: list[Asked], split: str, count: int, seed: int) -> list[Asked]:
    """Draw up to ``count`` questions of a split, all equally likely; same seed, same draw."""
    of_split = [asked for asked in questions if asked.question.split == split]
    return random.Random(f"{seed} {split}").sample(of_split, min(count, len(of_split)))


def family(question_id: str) -> str:
    """What kind of question an id such as ``voice.after-monday.0`` is."""
    name = question_id.split(".")[-2] if question_id.count(".") >= 2 else question_id
    for mark, label in _RELATIONS:
        if mark in name:
            return label
    relation, _, of = name.partition("-")
    if relation in ("after", "before") and of in _KINDS:
        return f"{_KINDS[of]} {relation}"
    return OTHER
