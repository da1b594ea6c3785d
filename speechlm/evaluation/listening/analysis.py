"""What the answers to a listening test say: means, differences, agreement, who was left out.

Both listeners and recordings are drawn from many: an interval that knows only one of the two is
too short. So resamples draw listeners and recordings, each with replacement, and weigh an answer
by how often both of its own were drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speechlm import doctor
from speechlm.errors import InputError
from speechlm.evaluation.listening.agreement import krippendorff_alpha
from speechlm.evaluation.listening.answers import Listener, read_answers, read_key
from speechlm.evaluation.listening.kinds import KINDS
from speechlm.evaluation.listening.making import ANCHOR
from speechlm.evaluation.significance import exchange_p, holm, sign_test
from speechlm.evaluation.tasks.results import Result, Subject, write_results
from speechlm.files import write_json

LISTENING_NAME = "listening.json"
NUM_RESAMPLES = 2000
FEW_LISTENERS = 8
REFERENCE_SCORE, REFERENCE_SHARE = 90, 0.15
"""A listener who puts the hidden reference below 90 in more than 15 % of trials is left out."""

Table = npt.NDArray[np.float64]
"""Answers float64 [listeners, recordings]; NaN where there is none."""


def analyse(test: Path, answers: Sequence[Path], output: Path, seed: int = 1) -> dict[str, Any]:
    """Analyse the answers to a test, and write ``listening.json`` and each system's results.

    Args:
        test: What :func:`speechlm.evaluation.listening.making.make_test` wrote.
        answers: Files that listeners saved, complete or not.
        output: ``listening.json`` goes there, and ``systems/NAME/results.jsonl``, folders that
            ``speechlm evaluate compare`` reads.
        seed: Of resamples and draws.

    Returns:
        What ``listening.json`` holds.

    Raises:
        InputError: There is no such test, no answers, or all listeners are left out.
        CorpusError: A file is not one of answers to this test.
    """
    key = read_key(test)
    everyone, repeated = read_answers(key, answers)
    failed = [each for each in everyone if each.failed_checks]
    screened = [each for each in everyone if each not in failed and _misses_reference(key, each)]
    used = [
        each for each in everyone if each.ratings and each not in failed and each not in screened
    ]
    if not used:
        raise InputError(
            f"{test}: of {len(everyone)} listeners none is left: {len(failed)} failed checks of "
            f"attention, {len(screened)} did not find the reference, the others answered nothing"
        )
    kind = KINDS[key["kind"]]
    tables = _tables(used)
    means = {name: _mean(table, seed) for name, table in tables.items()}
    report: dict[str, Any] = {
        "test": key["test"],
        "kind": key["kind"],
        "question": key["question"],
        "listeners": {
            "sent": len(everyone),
            "used": len(used),
            "failed_checks": [each.id for each in failed],
            "missed_reference": [each.id for each in screened],
            "incomplete": sum(each.answered < len(key["trials"]) for each in used),
            "files_left_out": repeated,
        },
        "against": key["systems"][0] if kind.paired else None,
        "systems": {name: means[name] for name in key["systems"] if name in means},
        "differences": _differences(key, tables, seed),
        "alpha": {
            level: krippendorff_alpha(np.concatenate(list(tables.values()), axis=1), level)
            for level in ("interval", "ordinal")
        },
    }
    if key["kind"] == "ab":
        for row in (*report["systems"].values(), *report["differences"]):
            row["value"], *row["ci95"] = (50 + 50 * end for end in (row["value"], *row["ci95"]))
    write_json(output / LISTENING_NAME, report)
    for name, row in report["systems"].items():
        folder = output / "systems" / re.sub(r"\W+", "_", name)
        write_results(folder, [_result(key, report, name, row, seed)])
    return report


def _misses_reference(key: Mapping[str, Any], listener: Listener) -> bool:
    """The post-screening of ITU-R BS.1534-3, 4.1.2, by the hidden reference."""
    if key["kind"] != "mushra":
        return False
    own = [each.value for each in listener.ratings if each.system == key["systems"][0]]
    return sum(value < REFERENCE_SCORE for value in own) > REFERENCE_SHARE * len(own)


def _tables(listeners: Sequence[Listener]) -> dict[str, Table]:
    """The answers by system; rows are the listeners, columns all recordings, in one order."""
    items = sorted({each.item for listener in listeners for each in listener.ratings})
    place = {item: index for index, item in enumerate(items)}
    tables: dict[str, Table] = {}
    for row, listener in enumerate(listeners):
        for each in listener.ratings:
            blank = np.full((len(listeners), len(items)), np.nan)
            tables.setdefault(each.system, blank)[row, place[each.item]] = each.value
    return tables


def _mean(table: Table, seed: int) -> dict[str, Any]:
    return {
        "value": float(np.nanmean(table)),
        "ci95": list(crossed_interval(table, seed=seed)),
        "n": int((~np.isnan(table)).sum()),
    }


def crossed_interval(table: Table, *, seed: int) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean over listeners and recordings that both vary.

    Args:
        table: float64 [listeners, recordings]; NaN where there is no answer.
        seed: Same seed, same interval.

    Source:
        Owen 2007, "The pigeonhole bootstrap", arXiv:0712.1111: no crossed bootstrap is exact,
        and this one errs on the side of a longer interval.
    """
    low, high = np.quantile(_resampled_means(table, seed), [0.025, 0.975])
    return float(low), float(high)


def _resampled_means(table: Table, seed: int) -> Table:
    given = ~np.isnan(table)
    sums, counts = np.where(given, table, 0.0), given * 1.0
    draw = np.random.default_rng(seed)
    people, recordings = (
        draw.multinomial(size, np.full(size, 1 / size), NUM_RESAMPLES).astype(np.float64)
        for size in table.shape
    )
    weights = ((people @ counts) * recordings).sum(axis=1)
    totals = ((people @ sums) * recordings).sum(axis=1)
    # Of a table with few answers a resample can hold none.
    means: Table = totals[weights > 0] / weights[weights > 0]
    return means


def _differences(
    key: Mapping[str, Any], tables: Mapping[str, Table], seed: int
) -> list[dict[str, Any]]:
    """Of two systems each, with p-values; the anchor is left out, as the reference is."""
    first = key["systems"][0]
    if KINDS[key["kind"]].paired:
        found = [(first, name, table) for name, table in tables.items()]
    else:
        hidden = (ANCHOR, first) if key["kind"] == "mushra" else ()
        names = [name for name in key["systems"] if name in tables and name not in hidden]
        found = [(one, other, tables[other] - tables[one]) for one, other in combinations(names, 2)]
    rows = [
        {
            "system": other,
            "against": one,
            **_mean(table, seed),
            "p": difference_p(table, seed=seed),
            "p_sign": sign_test(int((table > 0).sum()), int((table < 0).sum())),
            "ties": int((table == 0).sum()),
        }
        for one, other, table in found
        if not np.isnan(table).all()
    ]
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows


def difference_p(table: Table, *, seed: int) -> float:
    """The p-value, of both sides, of a mean of differences over listeners and recordings.

    Were there none, all that one listener says could as well be the other way round, and so
    could all that is said of one recording; both are drawn. That neither one listener nor one
    recording makes a difference alone is not enough where both vary: a bootstrap of both says
    how far the mean strays by itself. The largest of the three counts.

    Args:
        table: float64 [listeners, recordings] of differences; NaN where there is none.
        seed: Same seed, same value.
    """
    mean = np.nanmean(table)
    strays = abs(_resampled_means(table, seed) - mean) >= abs(mean) - 1e-12
    found = [float(strays.sum() + 1) / (len(strays) + 1)]
    for axis in (1, 0):
        counts = (~np.isnan(table)).sum(axis=axis)
        # Signs alone are drawn: both sides have the same counts.
        other = np.stack([np.nansum(table, axis=axis), counts], axis=1)
        found.append(exchange_p(other * [0.0, 1.0], other, seed=seed))
    return max(found)


def _result(
    key: Mapping[str, Any], report: Mapping[str, Any], name: str, row: Mapping[str, Any], seed: int
) -> Result:
    variant = KINDS[key["kind"]].variant
    against = f"/against={report['against']}" if report["against"] else ""
    return Result(
        metric=f"listen-{key['kind']}",
        variant=variant + against,
        value=row["value"],
        ci95=(row["ci95"][0], row["ci95"][1]),
        n=row["n"],
        judge=f"{report['listeners']['used']} listeners",
        seed=seed,
        data_sha256=key["data_sha256"],
        subject=Subject(model=name, versions=doctor.versions()),
    )


def listening_table(report: Mapping[str, Any]) -> list[str]:
    """Lines to read."""
    return [*_people(report["listeners"]), *_systems(report), *_apart(report), *_alpha(report)]


def _people(counted: Mapping[str, Any]) -> Iterator[str]:
    yield f"{counted['used']} of {counted['sent']} listeners used"
    for what, said in (
        ("failed_checks", "failed a check of attention"),
        ("missed_reference", "put the hidden reference below 90 in more than 15 % of trials"),
    ):
        if counted[what]:
            yield f"left out, {said}: {', '.join(counted[what])}"
    if counted["used"] < FEW_LISTENERS:
        yield f"note: of fewer than {FEW_LISTENERS} listeners no interval says much of others"
    if counted["incomplete"]:
        yield f"{counted['incomplete']} of those used did not answer all"
    if counted["files_left_out"]:
        yield f"{counted['files_left_out']} files left out: their listeners sent more in another"


def _systems(report: Mapping[str, Any]) -> Iterator[str]:
    width = max(len("system"), *map(len, report["systems"]))
    against = f"  against {report['against']}" if report["against"] else ""
    yield f"{'system':<{width}}    value        95 % interval      n{against}"
    for name, row in report["systems"].items():
        low, high = row["ci95"]
        yield (f"{name:<{width}}  {row['value']:7.2f}  {low:7.2f} to {high:7.2f}  {row['n']:5d}")


def _apart(report: Mapping[str, Any]) -> Iterator[str]:
    for row in report["differences"]:
        low, high = row["ci95"]
        yield (
            f"{row['system']} against {row['against']}: {row['value']:.2f} ({low:.2f} to "
            f"{high:.2f}), p {row['p']:.4f}, after Holm {row['p_holm']:.4f}, sign test of single "
            f"answers {row['p_sign']:.4f} ({row['ties']} ties)"
        )


def _alpha(report: Mapping[str, Any]) -> Iterator[str]:
    for level, value in report["alpha"].items():
        said = "not told: no two answers to one recording, or all alike"
        yield (
            f"agreement, Krippendorff's alpha, {level}: {said if value is None else f'{value:.3f}'}"
        )
