"""Every benchmark that ``speechlm evaluate --suite`` knows, and what it wants.

Runners are named, not imported: a command line that only tells about them starts at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from speechlm.errors import InputError

MINI = "mini"
_HERE = "speechlm.evaluation.tasks"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What can be named after ``--suite``."""

    runner: str
    """``module:function`` beside this one; the function takes a job and gives its rows."""
    about: str
    """What it asks, a few words."""
    data: str = ""
    """What its folder holds; empty for one that makes its data on the spot."""

    @property
    def address(self) -> tuple[str, str]:
        """Module and function."""
        module, _, function = self.runner.partition(":")
        return f"{_HERE}.{module}", function


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A benchmark to run."""

    name: str
    data: Path | None = None


_STORIES = "ID_mutual, ID_correct, ID_incorrect"
_PAIRS, _MINI_PAIRS = "pair_suites:run_pairs", "pair_suites:run_mini_pairs"
BENCHMARKS: Mapping[str, Benchmark] = {
    "swuggy": Benchmark(_PAIRS, "words, non-words", "ZeroSpeech 2021 lexical, gold.csv"),
    "sblimp": Benchmark(_PAIRS, "grammar", "ZeroSpeech 2021 syntactic, gold.csv"),
    "ssc": Benchmark(_PAIRS, "the right end of a story", f"{_STORIES} .wav"),
    "ssc-st": Benchmark(
        _PAIRS, "the same, told in speech, ended in text", "mutual .wav, ends .txt"
    ),
    "ssc-ts": Benchmark(_PAIRS, "the same, from text to speech", "mutual .txt, ends .wav"),
    "ssc-tt": Benchmark(_PAIRS, "the same, in text", f"{_STORIES} .txt"),
    "tsc": Benchmark(_PAIRS, "an end that keeps to the topic", "as ssc"),
    "tsc-st": Benchmark(_PAIRS, "the same, told in speech, ended in text", "as ssc-st"),
    "tsc-ts": Benchmark(_PAIRS, "the same, from text to speech", "as ssc-ts"),
    "tsc-tt": Benchmark(_PAIRS, "the same, in text", "as ssc-tt"),
    "salmon": Benchmark(_PAIRS, "sound that keeps its voice, room, mood", "SALMon"),
    "prosaudit": Benchmark(_PAIRS, "pauses where they belong", "ZeroSpeech 2023, gold.csv"),
    "pairs": Benchmark(_PAIRS, "pairs of one's own", "pairs.jsonl"),
    "abx": Benchmark("phone_abx:run_abx", "phones told apart", "NAME.item, recordings"),
    "units": Benchmark(
        "unit_figures:run_units", "what units are and what changes them", "recordings"
    ),
    "ssimi": Benchmark("semantic_similarity:run_ssimi", "likeness of words", "ZeroSpeech 2021"),
    "resynthesis": Benchmark(
        "recordings:run_resynthesis", "what tokenizer and vocoder keep", "recordings"
    ),
    "recordings": Benchmark(
        "recordings:run_recordings", "recordings beside references", "the references"
    ),
    "continuation": Benchmark("generation:run_continuation", "sense and variety", "recordings"),
    "continuation-curve": Benchmark(
        "generation:run_continuation_curve", "the same over temperatures", "recordings"
    ),
    "prosody": Benchmark("prosody_continuation:run_prosody", "length and pitch", "recordings"),
    "spoken-qa": Benchmark("spoken_qa:run_spoken_qa", "right answers", "questions.jsonl"),
    "voicebench": Benchmark("voicebench:run_voicebench", "VoiceBench", "as published"),
    "uro-bench": Benchmark("uro_bench:run_uro", "URO-Bench", "as published"),
    "stsp": Benchmark("stsp:run_stsp", "the mood is kept (SpiritLM)", "as published"),
    "dialogues": Benchmark(
        "dialogues:run_dialogues", "turn-taking beside people's", "two-channel recordings"
    ),
    "fdb": Benchmark("full_duplex:run_full_duplex", "Full-Duplex-Bench 1.0, 1.5", "as published"),
    "mini-swuggy": Benchmark(_MINI_PAIRS, "words, non-words"),
    "mini-sblimp": Benchmark(_MINI_PAIRS, "grammar"),
    "mini-tsc": Benchmark(_MINI_PAIRS, "an end that keeps to the topic"),
    "mini-ssc": Benchmark(_MINI_PAIRS, "the right end"),
    "mini-salmon": Benchmark(_MINI_PAIRS, "sound that keeps its voice, room, noise"),
    "mini-prosaudit": Benchmark(_MINI_PAIRS, "pauses where they belong"),
    "mini-abx": Benchmark("mini.phones:run_mini_abx", "phones told apart"),
    "mini-resynthesis": Benchmark(
        "recordings:run_mini_resynthesis", "what tokenizer and vocoder keep"
    ),
    "mini-fdb": Benchmark("mini.dialogues:run_mini_full_duplex", "Full-Duplex-Bench in small"),
    "latency": Benchmark("latency:run_latency", "how soon and how fast it answers"),
}
"""By name, in the order in which they are told."""


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
    if name not in BENCHMARKS or (given and not BENCHMARKS[name].data):
        takes = ", ".join(name for name, one in BENCHMARKS.items() if one.data)
        makes = ", ".join(name for name, one in BENCHMARKS.items() if not one.data)
        raise InputError(
            f"--suite {text}: expected NAME=FOLDER with a name of {takes}; or one made on the "
            f"spot: {makes}; '{MINI}' is all whose names begin so"
        )
    if not given and BENCHMARKS[name].data:
        raise InputError(f"--suite {name}: expected {name}=FOLDER: {BENCHMARKS[name].data}")
    return Suite(name=name, data=Path(folder) if given else None)


def described() -> list[str]:
    """Lines to read: each name, what it asks and what its folder holds."""
    width = max(len(name) for name in BENCHMARKS)
    return [
        f"{name:<{width}}  {one.about}" + (f" ({one.data})" if one.data else "")
        for name, one in BENCHMARKS.items()
    ]
