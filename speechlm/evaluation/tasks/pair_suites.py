"""Running benchmarks of pairs, published ones and those that are made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from speechlm.bundle import SpeechLM
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.mini.sentences import make_prosaudit, make_sblimp
from speechlm.evaluation.tasks.mini.sound import make_salmon
from speechlm.evaluation.tasks.mini.stories import make_ssc, make_tsc
from speechlm.evaluation.tasks.mini.words import make_swuggy
from speechlm.evaluation.tasks.pair_accuracy import score_pairs
from speechlm.evaluation.tasks.pairs import READERS, Pair, data_sha256
from speechlm.evaluation.tasks.results import Result
from speechlm.files import write_folder_aside

MAKERS: Mapping[str, Callable[[Path, int], None]] = {
    "mini-swuggy": make_swuggy,
    "mini-sblimp": make_sblimp,
    "mini-prosaudit": make_prosaudit,
    "mini-tsc": make_tsc,
    "mini-ssc": make_ssc,
    "mini-salmon": make_salmon,
}
"""What makes the data of each in an empty folder, by a seed."""


def run_pairs(job: Job) -> Iterator[Result]:
    """Pairs, of which one recording should be the likelier."""
    yield from _score(job, job.system.bundle, READERS[job.name](job.given))


def run_mini_pairs(job: Job) -> Iterator[Result]:
    """Pairs made on the spot, in the layout of the benchmark after which they are named."""
    model = job.system.bundle  # refused before anything is made
    folder = job.made()
    if not folder.is_dir():
        with write_folder_aside(folder) as aside:
            MAKERS[job.name](aside, job.seed)
    yield from _score(job, model, READERS[job.name.removeprefix("mini-")](folder))


def _score(job: Job, model: SpeechLM, pairs: Sequence[Pair]) -> Iterator[Result]:
    sha256 = data_sha256(pairs)
    items = job.run_items(pairs, lambda left: score_pairs(model, left), sha256, "pairs")
    yield from job.rows(items, sha256)
