"""Measure a run: what an outside judge hears in its answers, and what they cost.

The judge hears four things, over the same test questions where that makes sense: the recorded
answers, those answers passed through tokenizer and vocoder (the ceiling of the model), and the
model's replies to voices that training never heard and to voices that it heard.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from speechlm import doctor
from speechlm.bundle import SpeechLM
from speechlm.config import RunConfig
from speechlm.data.corpus import Recording, open_corpus
from speechlm.data.shards import UnitFormat
from speechlm.errors import CorpusError
from speechlm.evaluation.asked import Asked, draw_questions, find_questions
from speechlm.evaluation.figures import require_matplotlib
from speechlm.evaluation.judge import GrammarJudge
from speechlm.evaluation.measures import (
    codebook_usage,
    confusions,
    proportion,
    unit_perplexity,
)
from speechlm.evaluation.report import Clip, Example, write_report
from speechlm.evaluation.streams import first_audio_latency, vocoder_agreement
from speechlm.evaluation.tasks.job import System
from speechlm.evaluation.tasks.suite import Suite, parse_suites, run_suites
from speechlm.files import read_json, write_json
from speechlm.layouts.grid import Layout, LMSequence
from speechlm.layouts.registry import layout_from_dict
from speechlm.progress import say
from speechlm.units import Units

SPLITS = {"unseen": "test", "seen": "train"}
"""Whose questions are asked: of voices that training did not hear, and of those it heard."""
BENCHMARKS_FOLDER = "benchmarks"
NUM_TIMED = 25
"""Questions asked live to time the first sound, the first of them to warm up."""
NUM_COMPARED = 8
"""Answers rendered by the vocoder's stream too."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Heard:
    """One recording on its way through the chain."""

    wave: Tensor
    """float32 [T] at the rate of the part that takes or made it."""
    units: Units
    text: str = ""
    """What the judge heard in it."""


class Clock:
    """Seconds by stage, and the seconds of audio that each stage handled."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.audio_s: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def real_time_factors(self) -> dict[str, float]:
        """Seconds of work a second of audio, below 1 where the stage keeps up with speech."""
        return {
            stage: self.seconds[stage] / audio_s
            for stage, audio_s in self.audio_s.items()
            if audio_s
        }


def evaluate(config: RunConfig) -> dict[str, Any]:
    """Measure ``config.bundle_path`` on ``config.corpus_path``.

    Writes ``report.json`` and ``report.html`` under ``config.output`` and prints the figures.

    Returns:
        What ``report.json`` holds.

    Raises:
        CorpusError: The corpus has no test questions with recorded answers.
        CheckpointError: There is no bundle.
        PluginError: pocketsphinx or matplotlib is not installed.
    """
    start = time.perf_counter()
    require_matplotlib()
    suites = parse_suites(config.evaluate.suites)
    clock = Clock()
    model = SpeechLM.from_pretrained(config.bundle_path)
    questions = find_questions(open_corpus(config.corpus_path))
    judge = GrammarJudge([asked.expected for asked in questions])
    groups = {
        group: draw_questions(questions, split, config.evaluate.num_questions, config.seed)
        for group, split in SPLITS.items()
    }
    if not groups["unseen"]:
        raise CorpusError(
            f"{config.corpus_path}: expected questions whose split is 'test', got none"
        )

    # A test world has few answers and many questions: each answer is heard once, and looked up.
    answers = {asked.answer.id: asked.answer for asked in chain(*groups.values())}
    say(f"evaluating: {len(answers)} recorded answers")
    recorded = _tokenize(model, list(answers.values()), clock)
    recorded = _listen(judge, recorded, model.tokenizer.sample_rate, clock)
    resynthesized = _render(model, judge, [one.units for one in recorded], clock)
    asked_waves, replies = {}, {}
    for group, asked in groups.items():
        say(f"evaluating: {len(asked)} questions of {SPLITS[group]} voices")
        asked_waves[group] = _tokenize(model, [one.question for one in asked], clock)
        replies[group] = _reply(model, judge, asked_waves[group], config, clock)

    by_answer = {
        "recorded": dict(zip(answers, recorded, strict=True)),
        "resynthesized": dict(zip(answers, resynthesized, strict=True)),
    }
    heard = {
        **{
            name: [(one, found[one.answer.id].text) for one in groups["unseen"]]
            for name, found in by_answer.items()
        },
        **{
            group: [(one, reply.text) for one, reply in zip(asked, replies[group], strict=True)]
            for group, asked in groups.items()
        },
    }
    expected = {asked.answer.id: asked.expected for asked in chain(*groups.values())}
    left_out = {
        answer: one.text
        for answer, one in by_answer["recorded"].items()
        if one.text != expected[answer]
    }
    conversations = _conversations(model, groups["unseen"], asked_waves["unseen"], by_answer)
    tokenized = [*recorded, *chain(*asked_waves.values())]
    report: dict[str, Any] = {
        "judge": _judge_figures(heard, left_out, expected),
        "unit_perplexity": {
            name: unit_perplexity(model.lm, _sequences(model, layout, conversations), config.seed)
            for name, layout in _weighted_layouts(model)
        },
        "codebooks": codebook_usage(
            [one.units for one in tokenized], UnitFormat.of(model.tokenizer).sizes
        ),
        "first_audio_latency": first_audio_latency(
            model, [one.wave for one in asked_waves["unseen"][:NUM_TIMED]], config.generate
        ),
        "vocoder_stream": vocoder_agreement(model, [one.units for one in recorded[:NUM_COMPARED]]),
    }
    examples = [
        _example(model, group, asked, question, reply, by_answer)
        for group in SPLITS
        for asked, question, reply in _choose_examples(
            groups[group], asked_waves[group], replies[group], config.evaluate.num_examples, group
        )
    ]
    with clock.measure("benchmarks"):
        report["benchmarks"] = _benchmarks(model, suites, config)
    report["seconds"] = {
        **_stage_seconds(config),
        "evaluate": time.perf_counter() - start,
        **{f"evaluate.{stage}": seconds for stage, seconds in clock.seconds.items()},
    }
    report["real_time_factor"] = clock.real_time_factors()
    report["model"] = _describe(model)
    report["versions"] = doctor.versions()
    report["machine"] = {"cpu": doctor.cpu_name(), "cores": doctor.usable_cores()}
    write_report(config, report, examples)
    write_json(config.output / "report.json", report)
    _print(report)
    return report


def _weighted_layouts(model: SpeechLM) -> list[tuple[str, Layout]]:
    """The LM's layout, counting the answer alone, and counting the question as much."""
    saved = model.lm.layout.to_dict()
    return [
        (name, layout_from_dict({**saved, "options": {**saved["options"], "question_weight": w}}))
        for name, w in (("answer", 0.0), ("all", 1.0))
    ]


def _tokenize(model: SpeechLM, recordings: Sequence[Recording], clock: Clock) -> list[Heard]:
    found = []
    for recording in recordings:
        wave = recording.load(model.tokenizer.sample_rate)
        with clock.measure("tokenize"):
            units = model.tokenizer.encode(wave[None])[0]
        clock.audio_s["tokenize"] += len(wave) / model.tokenizer.sample_rate
        found.append(Heard(wave=wave, units=units))
    return found


def _reply(
    model: SpeechLM, judge: GrammarJudge, asked: list[Heard], config: RunConfig, clock: Clock
) -> list[Heard]:
    with clock.measure("generate"):
        replies = model.reply_units(
            [one.units for one in asked],
            sampling=config.generate,
            seeds=[config.seed + index for index in range(len(asked))],
        )
    clock.audio_s["generate"] += sum(reply.duration_s for reply in replies)
    return _render(model, judge, replies, clock)


def _render(
    model: SpeechLM, judge: GrammarJudge, units: Sequence[Units], clock: Clock
) -> list[Heard]:
    # A model that knows an answer recites it unit for unit: such answers are rendered once.
    different = {one.codes.numpy().tobytes(): one for one in units}
    with clock.measure("vocode"):
        waves = model.vocoder.decode(list(different.values()), speaker=model.reply_voice)
    clock.audio_s["vocode"] += sum(len(wave) for wave in waves) / model.vocoder.sample_rate
    clips = [
        Heard(wave=wave, units=one) for wave, one in zip(waves, different.values(), strict=True)
    ]
    heard = dict(
        zip(different, _listen(judge, clips, model.vocoder.sample_rate, clock), strict=True)
    )
    return [heard[one.codes.numpy().tobytes()] for one in units]


def _listen(judge: GrammarJudge, clips: list[Heard], sample_rate: int, clock: Clock) -> list[Heard]:
    with clock.measure("judge"):
        texts = judge.transcribe_many([clip.wave for clip in clips], sample_rate)
    clock.audio_s["judge"] += sum(len(clip.wave) for clip in clips) / sample_rate
    return [
        Heard(wave=clip.wave, units=clip.units, text=text)
        for clip, text in zip(clips, texts, strict=True)
    ]


def _judge_figures(
    heard: Mapping[str, Sequence[tuple[Asked, str]]],
    left_out: Mapping[str, str],
    expected: Mapping[str, str],
) -> dict[str, Any]:
    """Accuracies, each also with nothing left out; that is the only way for ``recorded``."""
    figures: dict[str, Any] = {}
    families: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, pairs in heard.items():
        kept = [pair for pair in pairs if name == "recorded" or pair[0].answer.id not in left_out]
        figures[name] = {
            **_accuracy(kept),
            "nothing_left_out": _accuracy(pairs),
            "empty": sum(text == "" for _, text in pairs),
        }
        for family in sorted({asked.family for asked, _ in kept}):
            families[family][name] = _accuracy([one for one in kept if one[0].family == family])
    voices = sorted({asked.question.speaker or "" for asked, _ in heard["unseen"]})
    return {
        **figures,
        "left_out": [
            {"answer": answer, "expected": expected[answer], "heard": text}
            for answer, text in left_out.items()
        ],
        "families": dict(families),
        "unseen_voices": {
            voice: _accuracy(
                [
                    pair
                    for pair in heard["unseen"]
                    if (pair[0].question.speaker or "") == voice
                    and pair[0].answer.id not in left_out
                ]
            )
            for voice in voices
        },
        "confusions": {
            name: confusions([(asked.expected, text) for asked, text in pairs])
            for name, pairs in heard.items()
        },
    }


def _accuracy(pairs: Sequence[tuple[Asked, str]]) -> dict[str, Any]:
    return proportion([asked.expected == text for asked, text in pairs])


def _conversations(
    model: SpeechLM,
    asked: Sequence[Asked],
    questions: Sequence[Heard],
    by_answer: Mapping[str, Mapping[str, Heard]],
) -> list[tuple[Units, Units]]:
    """Questions with their recorded answers."""
    return [
        (question.units, by_answer["recorded"][one.answer.id].units)
        for one, question in zip(asked, questions, strict=True)
    ]


def _sequences(
    model: SpeechLM, layout: Layout, conversations: Sequence[tuple[Units, Units]]
) -> list[LMSequence]:
    """Those that fit the LM's context, as it reads them.

    Raises:
        CorpusError: None does.
    """
    limit = model.lm.decoder.config.max_positions
    every = [
        layout.encode(model.lm.vocabulary, {"question": question.codes, "answer": answer.codes})
        for question, answer in conversations
    ]
    # The last column is predicted, never read.
    fitting = [sequence for sequence in every if len(sequence) - 1 <= limit]
    if not fitting:
        raise CorpusError(
            f"none of {len(every)} questions fits with its answer into {limit} positions "
            f"(model.max_positions); the shortest takes {min(len(each) for each in every) - 1}"
        )
    return fitting


def _choose_examples(
    asked: Sequence[Asked],
    questions: Sequence[Heard],
    replies: Sequence[Heard],
    num_examples: int,
    group: str,
) -> list[tuple[Asked, Heard, Heard]]:
    """Half of the examples from each group, a third of them failures while there are some."""
    count = (num_examples + 1) // 2 if group == "unseen" else num_examples // 2
    rows = list(zip(asked, questions, replies, strict=True))
    wrong = [row for row in rows if row[2].text != row[0].expected]
    right = [row for row in rows if row[2].text == row[0].expected]
    num_wrong = min(len(wrong), max(count // 3, count - len(right), 1), count)
    return [*right[: count - num_wrong], *wrong[:num_wrong]]


def _example(
    model: SpeechLM,
    group: str,
    asked: Asked,
    question: Heard,
    reply: Heard,
    by_answer: Mapping[str, Mapping[str, Heard]],
) -> Example:
    recorded = by_answer["recorded"][asked.answer.id]
    resynthesized = by_answer["resynthesized"][asked.answer.id]
    rate_in, rate_out = model.tokenizer.sample_rate, model.vocoder.sample_rate
    return Example(
        group=group,
        question_text=asked.question.text or asked.question.id,
        speaker=asked.question.speaker or "",
        expected=asked.expected,
        clips=(
            Clip(title="question", wave=question.wave, sample_rate=rate_in),
            Clip(
                title="recorded answer",
                wave=recorded.wave,
                sample_rate=rate_in,
                heard=recorded.text,
            ),
            Clip(
                title="its resynthesis",
                wave=resynthesized.wave,
                sample_rate=rate_out,
                heard=resynthesized.text,
            ),
            Clip(
                title="the model's answer", wave=reply.wave, sample_rate=rate_out, heard=reply.text
            ),
        ),
    )


def _stage_seconds(config: RunConfig) -> dict[str, float]:
    """What the demo recorded of the stages before this one."""
    path = config.output / "seconds.json"
    recorded = read_json(path) if path.is_file() else {}
    return {stage: seconds for stage, seconds in recorded.items() if stage != "evaluate"}


def _benchmarks(
    model: SpeechLM, suites: Sequence[Suite], config: RunConfig
) -> list[dict[str, Any]]:
    """Rows of the benchmarks, which lie in their own folder as well."""
    system = System(str(config.bundle_path), model)
    rows = run_suites(system, suites, config.output / BENCHMARKS_FOLDER, config.seed)
    return [
        {
            "metric": row.metric,
            "subset": row.subset,
            "variant": row.variant,
            "value": row.value,
            "ci95": list(row.ci95) if row.ci95 else None,
            "n": row.n,
            "error": row.error,
        }
        for row in rows
    ]


def _describe(model: SpeechLM) -> dict[str, Any]:
    return {
        "tokenizer": model.tokenizer.fingerprint,
        "lm": model.lm.fingerprint,
        "vocoder": model.vocoder.fingerprint,
        "lm_parameters": sum(weight.numel() for weight in model.lm.decoder.parameters()),
        "vocab_size": model.tokenizer.vocab_size,
        "frame_rate": model.tokenizer.frame_rate,
        "sample_rate": model.sample_rate,
        "threads": torch.get_num_threads(),
    }


def _print(report: Mapping[str, Any]) -> None:
    """The head figures, to stdout."""
    judge = report["judge"]
    print(f"{'what the judge heard':24} {'accuracy':>8}  {'95 % interval':^15} {'n':>5}")
    for name in ("recorded", "resynthesized", *SPLITS):
        row = judge[name]
        accuracy = "none" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
        print(f"{name:24} {accuracy:>8}  {row['low']:.3f} to {row['high']:.3f} {row['n']:>5}")
    if judge["left_out"]:
        words = ", ".join(f"{row['expected']} ({row['heard']})" for row in judge["left_out"])
        print(f"left out below the first line, as misheard in the original: {words}")
    for name, row in report["unit_perplexity"].items():
        print(f"{'unit perplexity, ' + name:24} {row['perplexity']:8.2f}")
    for row in report["codebooks"]:
        print(f"{'units used':24} {row['used']:>8}  of {row['size']}")
    for stage, factor in report["real_time_factor"].items():
        print(f"{'real-time factor, ' + stage:24} {factor:8.4f}")
    latency = report["first_audio_latency"]
    if latency["n"]:
        print(
            f"{'first audio, ms':24} {1000 * latency['median_s']:8.0f}  "
            f"p95 {1000 * latency['p95_s']:.0f}"
        )
