"""Running benchmarks by name: from a folder of data to rows of results.

What a benchmark is lies in three places: a reader makes a manifest of its data, a scorer gives
each row of it an item, and items add up to figures. Items are kept as they come and used again
as long as data, model and seed are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from speechlm.errors import SpeechLMError
from speechlm.evaluation.tasks.catalogue import BENCHMARKS, Suite
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.results import (
    RESULTS_NAME,
    Result,
    read_results,
    write_results,
)
from speechlm.progress import say

Runner = Callable[[Job], Iterator[Result]]


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
            rows.extend(_runner(suite.name)(job))
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


def _runner(name: str) -> Runner:
    module, function = BENCHMARKS[name].address
    runner: Runner = getattr(import_module(module), function)
    return runner
