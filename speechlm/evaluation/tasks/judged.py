"""A judge's verdicts as items: asked once, kept word for word, read when they are graded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from speechlm.evaluation.answers.answer_rules import majority
from speechlm.evaluation.answers.llm_judge import (
    HOW_TO,
    ChatJudge,
    Judge,
    JudgeConfig,
    parse_rating,
    parse_yes_no,
)
from speechlm.evaluation.tasks.items import RIGHT, WRONG, Item
from speechlm.evaluation.tasks.job import Job

PROMPTS_AT_ONCE = 16
NO_JUDGE = f"no judge: {HOW_TO}"
Figures = dict[str, tuple[float, float]]


def configured_judge(seed: int) -> Judge | None:
    """The judge that the environment names; None where it names none.

    Raises:
        ConfigError: It names a model without a server.
    """
    config = JudgeConfig.from_environment(seed)
    return None if config is None else ChatJudge(config)


def ask_judge(job: Job, judge: Judge, prompts: Mapping[str, str]) -> dict[str, Item]:
    """Verdicts on prompts, by their ids: items whose note has ``raw``, or an error.

    They lie in a journal of their own, ``NAME-judge``: a rerun asks only what is left.

    Raises:
        JudgeError: The judge is away.
    """

    def score(left: Sequence[str]) -> Iterator[Item]:
        for first in range(0, len(left), PROMPTS_AT_ONCE):
            names = left[first : first + PROMPTS_AT_ONCE]
            verdicts = judge.ask_many([prompts[name] for name in names])
            for name, verdict in zip(names, verdicts, strict=True):
                note = {"raw": list(verdict.raw), "usage": dict(verdict.usage)}
                yield Item(id=name, note=note, error=verdict.error)

    digest = hashlib.sha256("\0".join(f"{k}\0{v}" for k, v in prompts.items()).encode())
    items = replace(job, name=f"{job.name}-judge").run_items(
        list(prompts), score, digest.hexdigest(), "verdicts", judge=judge.name
    )
    return {item.id: item for item in items}


def rating_figures(prefix: str, raw: Sequence[str]) -> Figures:
    """The mean of those of a judge's numbers that can be read, and how many cannot.

    ``PREFIX/judge_1_5``; ``PREFIX/judge_unread`` in percent of its answers. Where none can be
    read there is no number; what has no number is no item of the mean.
    """
    ratings = [rating for text in raw if (rating := parse_rating(text)) is not None]
    figures = _unread(prefix, raw, parse_rating)
    if ratings:
        figures[f"{prefix}/judge_1_5"] = sum(ratings) / len(ratings), 1.0
    return figures


def yes_no_figures(prefix: str, raw: Sequence[str]) -> Figures:
    """Whether most of a judge's answers are yes, the share that is, and how many are neither.

    ``PREFIX/judge_majority``, ``PREFIX/judge_share``, ``PREFIX/judge_unread``, in percent; what is
    neither is no yes.
    """
    said = [parse_yes_no(text) for text in raw]
    figures = _unread(prefix, raw, parse_yes_no)
    if raw:
        figures[f"{prefix}/judge_majority"] = RIGHT if majority(said) else WRONG
        figures[f"{prefix}/judge_share"] = 100.0 * said.count(True) / len(said), 1.0
    return figures


def _unread(prefix: str, raw: Sequence[str], parse: Callable[[str], object]) -> Figures:
    if not raw:
        return {}
    failed = sum(parse(text) is None for text in raw)
    return {f"{prefix}/judge_unread": (100.0 * failed, float(len(raw)))}
