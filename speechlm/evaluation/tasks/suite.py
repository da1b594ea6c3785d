"""Running benchmarks by name: from a folder of data to rows of results.

What a benchmark is lies in three places: a reader makes a manifest of its data, a scorer gives
each row of it an item, and items add up to figures. Items are kept as they come and used again
as long as data, model and seed are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from speechlm.errors import InputError, SpeechLMError
from speechlm.evaluation.tasks.dialogues import run_dialogues
from speechlm.evaluation.tasks.full_duplex import run_full_duplex
from speechlm.evaluation.tasks.generation import run_continuation, run_continuation_curve
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.latency import run_latency
from speechlm.evaluation.tasks.mini.sentences import make_prosaudit, make_sblimp
from speechlm.evaluation.tasks.mini.sound import make_salmon
from speechlm.evaluation.tasks.mini.stories import make_ssc, make_tsc
from speechlm.evaluation.tasks.mini.words import make_swuggy
from speechlm.evaluation.tasks.mini_full_duplex import run_mini_full_duplex
from speechlm.evaluation.tasks.pair_accuracy import score_pairs
from speechlm.evaluation.tasks.pairs import READERS, STORY_WAYS, Pair, data_sha256
from speechlm.evaluation.tasks.phone_abx import run_abx
from speechlm.evaluation.tasks.prosody_continuation import run_prosody
from speechlm.evaluation.tasks.results import (
    RESULTS_NAME,
    Result,
    read_results,
    write_results,
)
from speechlm.evaluation.tasks.spoken_qa import run_spoken_qa
from speechlm.files import write_folder_aside
from speechlm.progress import say

MINI = "mini"
MAKERS: Mapping[str, Callable[[Path, int], None]] = {
    "mini-swuggy": make_swuggy,
    "mini-sblimp": make_sblimp,
    "mini-prosaudit": make_prosaudit,
    "mini-tsc": make_tsc,
    "mini-ssc": make_ssc,
    "mini-salmon": make_salmon,
}
"""What makes the data of each in an empty folder, by a seed."""
Runner = Callable[[Job], Iterator[Result]]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What can be named after ``--suite``."""

    run: Runner
    about: str
    """What it asks, a few words, as ``--help`` says it."""
    makes_data: bool = False
    """Whether it makes its data on the spot and takes no folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A benchmark to run."""

    name: str
    data: Path | None = None


def parse_suites(texts: Iterable[str]) -> list[Suite]:
    """Read what comes after ``--suite``; ``mini`` is all whose names begin so.

    Raises:
        InputError: As :func:`parse_suite` does.
    """
    mini = [name for name in BENCHMARKS if name.startswith(f"{MINI}-")]
    each = (mini if text == MINI else [text] for text in texts)
    return [parse_suite(name) for name in dict.fromkeys(chain.from_iterable(each))]


def parse_suite(text: str) -> Suite:
    """Read ``NAME=FOLDER``, or the ``NAME`` of one that makes its data on the spot.

    Raises:
        InputError: No such benchmark, or its data is not named.
    """
    name, given, folder = text.partition("=")
    if name not in BENCHMARKS or (given and BENCHMARKS[name].makes_data):
        takes = ", ".join(name for name, one in BENCHMARKS.items() if not one.makes_data)
        makes = ", ".join(name for name, one in BENCHMARKS.items() if one.makes_data)
        raise InputError(
            f"--suite {text}: expected NAME=FOLDER with a name of {takes}; or one made on the "
            f"spot: {makes}; '{MINI}' is all whose names begin so"
        )
    if not given and not BENCHMARKS[name].makes_data:
        raise InputError(f"--suite {name}: expected {name}=FOLDER, the folder of its data")
    return Suite(name=name, data=Path(folder) if given else None)


def run_suites(
    system: System,
    suites: Sequence[Suite],
    output: Path,
    seed: int,
    *,
    asr: str | None = None,
    text_lm: str | None = None,
) -> list[Result]:
    """Run benchmarks one after another; one that fails gives a row that says so.

    Args:
        system: What is measured.
        suites: What by.
        output: The folder of the results.
        seed: Of every draw.
        asr: As :class:`Job` has it.
        text_lm: The same.

    Returns:
        Their rows, which are also in ``output``, beside those of earlier runs there.

    Raises:
        CheckpointError: There is no such system.
    """
    subject = system.subject
    kept = read_results(output) if (output / RESULTS_NAME).is_file() else []
    made: list[Result] = []
    for suite in suites:
        start = time.perf_counter()
        job = Job(
            name=suite.name,
            system=system,
            data=suite.data,
            output=output,
            seed=seed,
            asr=asr,
            text_lm=text_lm,
        )
        rows: list[Result] = []
        try:
            rows.extend(BENCHMARKS[suite.name].run(job))
        except (SpeechLMError, OSError) as error:
            say(f"{suite.name}: {error}")
            rows.append(
                Result(metric=suite.name, variant="", seed=seed, error=str(error), subject=subject)
            )
        wall_s = time.perf_counter() - start
        made += [replace(row, wall_s=wall_s) for row in rows]
        names = {row.metric for row in made}
        write_results(output, [*(row for row in kept if row.metric not in names), *made])
    return made


def run_pairs(job: Job) -> Iterator[Result]:
    """Pairs, of which one recording should be the likelier."""
    yield from _score_pairs(job, READERS[job.name](job.given))


def run_mini_pairs(job: Job) -> Iterator[Result]:
    """Pairs made on the spot, in the layout of the benchmark after which they are named."""
    folder = job.made()
    if not folder.is_dir():
        with write_folder_aside(folder) as aside:
            MAKERS[job.name](aside, job.seed)
    yield from _score_pairs(job, READERS[job.name.removeprefix("mini-")](folder))


def _score_pairs(job: Job, pairs: Sequence[Pair]) -> Iterator[Result]:
    sha256 = data_sha256(pairs)
    model = job.system.bundle
    items = job.run_items(pairs, lambda left: score_pairs(model, left), sha256, "pairs")
    yield from job.rows(items, sha256)


BENCHMARKS: Mapping[str, Benchmark] = {
    "swuggy": Benchmark(run_pairs, "words and non-words"),
    "sblimp": Benchmark(run_pairs, "sentences, grammatical and not"),
    **{
        f"{name}{ways}": Benchmark(run_pairs, f"stories with their end, and with {other}")
        for name, other in (("ssc", "another"), ("tsc", "one of another topic"))
        for ways, _, _ in STORY_WAYS
    },
    "salmon": Benchmark(run_pairs, "consistent sound, and a change of voice, room, mood"),
    "prosaudit": Benchmark(run_pairs, "pauses where they are natural, and elsewhere"),
    "pairs": Benchmark(run_pairs, "pairs of one's own, in a pairs.jsonl"),
    "abx": Benchmark(run_abx, "do units tell phones apart"),
    "continuation": Benchmark(run_continuation, "sense and variety of what is said next"),
    "continuation-curve": Benchmark(run_continuation_curve, "the same over temperatures"),
    "prosody": Benchmark(run_prosody, "length and pitch of continuations"),
    "spoken-qa": Benchmark(run_spoken_qa, "are spoken questions answered rightly"),
    "dialogues": Benchmark(run_dialogues, "turn-taking in two-channel dialogues"),
    "fdb": Benchmark(run_full_duplex, "Full-Duplex-Bench: pauses, turns, interruptions"),
    "mini-swuggy": Benchmark(run_mini_pairs, "words and non-words", makes_data=True),
    "mini-sblimp": Benchmark(run_mini_pairs, "sentences, grammatical and not", makes_data=True),
    "mini-prosaudit": Benchmark(run_mini_pairs, "pauses, natural and not", makes_data=True),
    "mini-tsc": Benchmark(run_mini_pairs, "questions and ends of any topic", makes_data=True),
    "mini-ssc": Benchmark(run_mini_pairs, "questions and ends of their topic", makes_data=True),
    "mini-salmon": Benchmark(run_mini_pairs, "sound that changes midway", makes_data=True),
    "mini-fdb": Benchmark(run_mini_full_duplex, "pauses, turns, interruptions", makes_data=True),
    "latency": Benchmark(run_latency, "how soon an answer is heard", makes_data=True),
}
"""Every benchmark by its name."""
