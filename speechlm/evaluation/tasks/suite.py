"""Running benchmarks by name: from a folder of data to rows of results.

What a benchmark is lies in three places: a reader makes a manifest of its data, a scorer gives
each row scores, and an aggregator makes figures of these. Scores are kept as they come and used
again as long as data, model and seed are the same.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from speechlm import __version__
from speechlm.bundle import SpeechLM
from speechlm.errors import InputError, SpeechLMError
from speechlm.evaluation.tasks import pair_accuracy
from speechlm.evaluation.tasks.journal import Journal
from speechlm.evaluation.tasks.mini import MAKERS
from speechlm.evaluation.tasks.pair_accuracy import VARIANTS, Scored, item_name, score_pairs
from speechlm.evaluation.tasks.pairs import READERS, Pair, data_sha256
from speechlm.evaluation.tasks.phone_abx import measure_units, read_abx, recording
from speechlm.evaluation.tasks.results import (
    RESULTS_NAME,
    Result,
    Subject,
    read_results,
    write_results,
)
from speechlm.progress import progress, say


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """A benchmark to run."""

    name: str
    folder: Path | None = None
    """Where its data lies; None for one that is made on the spot."""


def parse_suite(text: str) -> Suite:
    """Read ``NAME=FOLDER``, or the ``NAME`` of one that is made on the spot.

    Raises:
        InputError: No such benchmark, or its data is not named.
    """
    name, given, folder = text.partition("=")
    if given and name in RUNNERS:
        return Suite(name=name, folder=Path(folder))
    if not given and name in MAKERS:
        return Suite(name=name)
    if name in RUNNERS and name not in MAKERS:
        raise InputError(f"--suite {name}: expected {name}=FOLDER, the folder of its data")
    raise InputError(
        f"--suite {text}: expected NAME=FOLDER with a name of "
        f"{', '.join(name for name in RUNNERS if name not in MAKERS)}; or one made on the spot: "
        f"{', '.join(MAKERS)}"
    )


def run_suites(model_folder: str, suites: Sequence[Suite], output: Path, seed: int) -> list[Result]:
    """Run benchmarks one after another; one that fails gives a row that says so.

    Returns:
        Their rows, which are also in ``output``, beside those of earlier runs there.

    Raises:
        CheckpointError: There is no bundle.
    """
    model = SpeechLM.from_pretrained(model_folder)
    subject = describe(model)
    kept = read_results(output) if (output / RESULTS_NAME).is_file() else []
    made: list[Result] = []
    for suite in suites:
        start = time.perf_counter()
        try:
            rows = _run(model, suite, output, seed, subject)
        except (SpeechLMError, OSError) as error:
            say(f"{suite.name}: {error}")
            rows = [
                Result(metric=suite.name, variant="", seed=seed, error=str(error), subject=subject)
            ]
        wall_s = time.perf_counter() - start
        made += [replace(row, wall_s=wall_s) for row in rows]
        names = {row.metric for row in made}
        write_results(output, [*(row for row in kept if row.metric not in names), *made])
    return made


def _run(model: SpeechLM, suite: Suite, output: Path, seed: int, subject: Subject) -> list[Result]:
    if suite.folder is not None and not suite.folder.exists():
        raise InputError(f"{suite.folder} is missing: expected the data of {suite.name}")
    rows = RUNNERS[suite.name](model, suite, output, seed, subject)
    return [replace(row, seed=seed) for row in rows]


def run_pairs(
    model: SpeechLM, suite: Suite, output: Path, seed: int, subject: Subject
) -> Iterator[Result]:
    """Pairs, of which one recording should be the likelier; scores are kept as they come."""
    if suite.folder is None:
        folder = output / "data" / suite.name
        MAKERS[suite.name](folder, seed)
        pairs = READERS["pairs"](folder)
    else:
        pairs = READERS[suite.name](suite.folder)
    sha256 = data_sha256(pairs)
    about = {"model": subject.model, "tokenizer": subject.tokenizer, "data_sha256": sha256}
    journal = Journal(output / "scores" / f"{suite.name}.jsonl", about)
    left = pairs[len(journal.items) :]
    with progress(suite.name, len(pairs), "pairs") as advance:
        advance(len(journal.items))
        for _ in journal.extend(_as_item(one) for one in score_pairs(model, left)):
            advance()
    scored = [_of_item(pair, item) for pair, item in zip(pairs, journal.items, strict=True)]
    for row in rows_of(suite.name, scored, subject, seed):
        yield replace(row, data_sha256=sha256)


def run_abx(
    model: SpeechLM, suite: Suite, output: Path, seed: int, subject: Subject
) -> Iterator[Result]:
    """Whether units tell phones apart; the language model is not asked."""
    assert suite.folder is not None
    for name, items in read_abx(suite.folder).items():
        found = hashlib.sha256()
        paths = {recording(suite.folder, item.file) for item in items}
        for path in sorted({suite.folder / f"{name}.item", *(path for path in paths if path)}):
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        for variant, error in measure_units(model.tokenizer, suite.folder, items, seed):
            yield Result(
                metric=suite.name,
                variant=variant,
                subset=name,
                value=error.value,
                ci95=error.ci95,
                n=error.num_triples,
                data_sha256=found.hexdigest(),
                subject=subject,
            )


Runner = Callable[[SpeechLM, Suite, Path, int, Subject], Iterator[Result]]
RUNNERS: Mapping[str, Runner] = {
    **dict.fromkeys([*READERS, *MAKERS], run_pairs),
    "abx": run_abx,
}
"""What runs each benchmark."""


def rows_of(name: str, scored: Sequence[Scored], subject: Subject, seed: int) -> list[Result]:
    """Figures of each subset and variant; a row beside them counts pairs that failed."""
    good = [one for one in scored if not one.error]
    rows = []
    if good:
        for subset, part in pair_accuracy.subsets(good).items():
            for variant in VARIANTS:
                found = pair_accuracy.figure(part, variant, seed)
                rows.append(
                    Result(
                        metric=name,
                        variant=variant,
                        subset=subset,
                        value=found.value,
                        ci95=found.ci95,
                        n=found.n,
                        subject=subject,
                    )
                )
    if len(good) < len(scored):
        first = next(one for one in scored if one.error)
        rows.append(
            Result(
                metric=name,
                variant="",
                subset="failed",
                n=len(scored) - len(good),
                error=f"{len(scored) - len(good)} of {len(scored)} pairs, "
                f"the first {first.pair.id}: {first.error}",
                subject=subject,
            )
        )
    return rows


def describe(model: SpeechLM) -> Subject:
    """What is measured, and by which versions."""
    versions = {"speechlm": __version__}
    for package in ("torch", "transformers", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return Subject(
        model=model.lm.fingerprint,
        tokenizer=model.tokenizer.fingerprint,
        rate_hz=model.tokenizer.frame_rate,
        dedup=bool(model.lm.layout.to_dict()["options"].get("collapse")),
        versions=versions,
    )


def _as_item(one: Scored) -> dict[str, Any]:
    return {"item": item_name(one.pair), "scores": dict(one.scores), "error": one.error}


def _of_item(pair: Pair, item: dict[str, Any]) -> Scored:
    scores = {name: (both[0], both[1]) for name, both in item["scores"].items()}
    return Scored(pair=pair, scores=scores, error=item["error"])
