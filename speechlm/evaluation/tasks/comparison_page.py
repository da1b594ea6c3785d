"""The page of ``speechlm evaluate compare``: evaluations side by side, in one HTML file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from speechlm.evaluation.page import escape, page, section, table, track
from speechlm.evaluation.tasks.compare import Change, Difference, Evaluated, changes, differences
from speechlm.evaluation.tasks.results import RESULTS_NAME, Result
from speechlm.files import write_aside

MOST_CHANGED = 8
"""Items each way that are shown of a figure."""
NOTE_LENGTH = 160
"""Characters of one value of an item's note; the whole may have twice as many."""


def write_comparison(folders: Sequence[Path], output_html: Path, seed: int = 1) -> Path:
    """Set evaluations side by side on a page: figures, paired differences, items that changed.

    Args:
        folders: What ``speechlm evaluate --suite`` wrote, two or more; differences are taken
            from the first.
        output_html: Written whole or not at all.
        seed: Of bootstraps and draws.

    Returns:
        ``output_html``.

    Raises:
        CheckpointError: A folder does not hold what an evaluation wrote.
        InputError: Nothing was measured on the same data.
    """
    evaluated = {_letter(index): Evaluated(folder) for index, folder in enumerate(folders)}
    found = differences(list(evaluated.values()), seed)
    title = f"{len(folders)} evaluations side by side"
    parts = [
        f"<header><h1>{escape(title)}</h1>{_legend(evaluated)}</header>",
        _warnings(evaluated),
        _failures(evaluated),
        section("What was compared", *_subjects(evaluated)),
        *_metrics(evaluated, found),
        section("How sure is a difference?", _method(found)),
    ]
    with write_aside(output_html) as aside:
        aside.write_text(page(title, parts), encoding="utf-8")
    return output_html


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _legend(evaluated: Mapping[str, Evaluated]) -> str:
    return "".join(
        f'<p><span class="key">{letter}</span> {escape(each.folder)}</p>'
        for letter, each in evaluated.items()
    )


def _warnings(evaluated: Mapping[str, Evaluated]) -> str:
    said = []
    for what, value in _OF_A_METRIC.items():
        for metric in _metric_names(evaluated):
            values = {
                letter: " and ".join(
                    dict.fromkeys(value(row) for row in each.rows if row.metric == metric)
                )
                for letter, each in evaluated.items()
                if any(row.metric == metric and not row.error for row in each.rows)
            }
            if len(set(values.values())) > 1:
                said.append(f"{metric}: the {what} differs: {_by_letter(values)}")
    for package, versions in _versions(evaluated).items():
        if len(set(versions.values())) > 1:
            said.append(f"the version of {package} differs: {_by_letter(versions)}")
    return section(
        "Not alike", *(f'<p class="warning" role="note">{escape(line)}</p>' for line in said)
    )


_OF_A_METRIC: Mapping[str, Callable[[Result], str]] = {
    "data": lambda row: row.data_sha256[:12] or "not told",
    "seed": lambda row: str(row.seed),
    "recognizer": lambda row: row.asr or "none",
    "judge": lambda row: row.judge or "none",
}
"""What should be the same where a metric is compared."""


def _by_letter(values: Mapping[str, str]) -> str:
    return ", ".join(f"{letter} {value}" for letter, value in values.items())


def _metric_names(evaluated: Mapping[str, Evaluated]) -> list[str]:
    return sorted({row.metric for each in evaluated.values() for row in each.rows})


def _versions(evaluated: Mapping[str, Evaluated]) -> dict[str, dict[str, str]]:
    """Package, then letter, to the version that rows tell."""
    told = {
        letter: [row.subject.versions for row in each.rows] for letter, each in evaluated.items()
    }
    packages = {package for rows in told.values() for versions in rows for package in versions}
    return {
        package: {
            letter: " and ".join(dict.fromkeys(versions.get(package, "none") for versions in rows))
            for letter, rows in told.items()
        }
        for package in sorted(packages)
    }


def _failures(evaluated: Mapping[str, Evaluated]) -> str:
    rows = [
        (letter, row.name, row.error)
        for letter, each in evaluated.items()
        for row in each.rows
        if row.error
    ]
    return section("What failed", table(("in", "metric", "why"), rows, "Not in any figure below"))


def _metrics(evaluated: Mapping[str, Evaluated], found: Sequence[Difference]) -> Iterator[str]:
    first = next(iter(evaluated.values()))
    letters = {each.folder: letter for letter, each in evaluated.items()}
    for metric in _metric_names(evaluated):
        names = dict.fromkeys(
            name
            for each in evaluated.values()
            for name, row in each.figures.items()
            if row.metric == metric
        )
        shared = [
            name for name in names if sum(name in each.figures for each in evaluated.values()) > 1
        ]
        alone = [
            f"{letter} {name}"
            for name in names
            if name not in shared
            for letter, each in evaluated.items()
            if name in each.figures
        ]
        mine = {
            name: {letters[one.other]: one for one in found if one.name == name} for name in shared
        }
        yield section(
            metric,
            *_variants(evaluated, mine),
            *(_changed(evaluated, first, letters, mine[name]) for name in shared),
            f'<p class="note">In one alone: {escape(", ".join(alone))}.</p>' if alone else "",
        )


def _variants(
    evaluated: Mapping[str, Evaluated], found: Mapping[str, Mapping[str, Difference]]
) -> Iterator[str]:
    """A part a variant: its figures are of one unit and share their axes."""
    rows: dict[str, dict[str, dict[str, Result]]] = {}
    for name in found:
        having = {
            letter: each.figures[name] for letter, each in evaluated.items() if name in each.figures
        }
        row = next(iter(having.values()))
        rows.setdefault(row.variant, {})[name] = having
    for variant, figures in rows.items():
        ends = [
            end
            for having in figures.values()
            for row in having.values()
            for end in (*(row.ci95 or ()), row.value)
            if end is not None
        ]
        far = max(
            (
                abs(end)
                for name in figures
                for one in found[name].values()
                for end in (*(one.ci95 or ()), one.value)
                if end is not None
            ),
            default=0.0,
        )
        axes = _widened(min(ends), max(ends)), _widened(-far, far)
        lines = [_figure(name, having, found[name], axes) for name, having in figures.items()]
        ends_shown = _ends("values", axes[0]) + _ends("apart", axes[1])
        yield (
            f"<h3>{escape(variant or 'value')}</h3>"
            + "".join(lines)
            + f'<div class="figures"><span></span>{ends_shown}</div>'
        )


def _widened(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _ends(label: str, axis: tuple[float, float]) -> str:
    return (
        f'<div class="line"><span class="note">{label}</span><div class="ends">'
        f"<span>{axis[0]:.3g}</span><span>{axis[1]:.3g}</span></div></div>"
    )


def _figure(
    name: str,
    having: Mapping[str, Result],
    found: Mapping[str, Difference],
    axes: tuple[tuple[float, float], tuple[float, float]],
) -> str:
    values = []
    for letter, row in having.items():
        assert row.value is not None
        said = f"{row.value:.2f}{_between(row.ci95, '.2f')}, n {row.n}"
        drawn = track(row.value, row.ci95, axes[0], f"{name}, {letter}: {said}")
        values.append(_line(letter, drawn, said))
    apart = []
    base = next(iter(having))
    for letter, one in found.items():
        label = f"{letter} - {base}"
        if one.value is None:
            apart.append(_line(label, "", one.why))
            continue
        said = f"{one.value:+.2f}{_between(one.ci95, '+.2f')}"
        if one.p is None or one.p_holm is None:
            said += f", {one.why}"
        else:
            said += f", p {_p(one.p)}, after Holm {_p(one.p_holm)}"
        if one.left_out:
            said += f", {one.left_out} items left out that one alone has"
        drawn = track(one.value, one.ci95, axes[1], f"{name}, {label}: {said}", mark=0.0)
        apart.append(_line(label, drawn, said))
    subset = next(iter(having.values())).subset or "all"
    return (
        f'<div class="figures" data-name="{escape(name)}"><span>{escape(subset)}</span>'
        f"<div>{''.join(values)}</div><div>{''.join(apart)}</div></div>"
    )


def _line(label: str, drawn: str, said: str) -> str:
    wide = "" if drawn else ' class="wide"'
    return (
        f'<div class="line"><span class="key">{escape(label)}</span>{drawn}'
        f"<span{wide}>{escape(said)}</span></div>"
    )


def _between(ci95: tuple[float, float] | None, form: str) -> str:
    return "" if ci95 is None else f" ({ci95[0]:{form}} to {ci95[1]:{form}})"


def _p(value: float) -> str:
    return f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def _changed(
    evaluated: Mapping[str, Evaluated],
    first: Evaluated,
    letters: Mapping[Path, str],
    found: Mapping[str, Difference],
) -> str:
    """Items that changed most; of the whole alone, as parts say no more."""
    shown = []
    base = letters[first.folder]
    for letter, one in found.items():
        if one.mine.subset or one.ci95 is None:
            continue
        all_changes = changes(first, evaluated[letter], one.name)
        fell = [change for change in all_changes if change.other < change.first]
        rose = [change for change in all_changes[::-1] if change.other > change.first]
        for what, part in (("higher", rose), ("lower", fell)):
            shown.append(
                table(
                    ("item", base, letter, "what it was"),
                    (
                        (change.id, f"{change.first:.4g}", f"{change.other:.4g}", _note(change))
                        for change in part[:MOST_CHANGED]
                    ),
                    f"{what} in {letter} than in {base}: {len(part)} of {one.n} items"
                    + (f", the first {MOST_CHANGED}" if len(part) > MOST_CHANGED else ""),
                )
            )
    if not any(shown):
        return ""
    title = f"{one.name}: items that changed most"
    return f"<details><summary>{escape(title)}</summary>{''.join(shown)}</details>"


def _note(change: Change) -> str:
    """What either says of an item, once where both say the same."""
    said = []
    for key in dict.fromkeys((*change.first_note, *change.other_note)):
        both = [_short(note.get(key)) for note in (change.first_note, change.other_note)]
        said.append(f"{key}: {' → '.join(dict.fromkeys(both))}")
    return _cut("; ".join(said), 2 * NOTE_LENGTH)


def _short(value: Any) -> str:
    """A value of a note in few words: of a path its name, of numbers four digits."""
    if isinstance(value, str):
        text = Path(value).name if Path(value).is_absolute() else value
    elif isinstance(value, float):
        text = f"{value:.4g}"
    elif isinstance(value, list):
        text = ", ".join(_short(each) for each in value)
    elif isinstance(value, dict):
        text = ", ".join(f"{key} ({_short(each)})" for key, each in value.items())
    else:
        text = json.dumps(value, ensure_ascii=False)
    return _cut(text, NOTE_LENGTH)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _subjects(evaluated: Mapping[str, Evaluated]) -> Iterator[str]:
    about: dict[str, Callable[[Result], object]] = {
        "model": lambda row: row.subject.model,
        "tokenizer": lambda row: row.subject.tokenizer or "none",
        "units a second": lambda row: row.subject.rate_hz or "none",
        "repeats merged": lambda row: {True: "yes", False: "no", None: "not told"}[
            row.subject.dedup
        ],
        "seed": lambda row: row.seed,
    }
    rows = [
        (what, *(_all(each.rows, value) for each in evaluated.values()))
        for what, value in about.items()
    ]
    rows.append(("written", *(_written(each.folder) for each in evaluated.values())))
    yield table(("", *evaluated), rows, "Models and settings")
    data = [
        (
            metric,
            *(
                _all(
                    [row for row in each.rows if row.metric == metric],
                    lambda row: row.data_sha256[:12],
                )
                or "not measured"
                for each in evaluated.values()
            ),
        )
        for metric in _metric_names(evaluated)
    ]
    yield table(("benchmark", *evaluated), data, "Data, the first digits of its SHA-256")
    versions = [(package, *having.values()) for package, having in _versions(evaluated).items()]
    shown = table(("package", *evaluated), versions, "Measured with")
    yield f"<details><summary>Versions</summary>{shown}</details>"


def _all(rows: Sequence[Result], value: Callable[[Result], object]) -> str:
    return ", ".join(dict.fromkeys(str(value(row)) for row in rows if value(row) != ""))


def _written(folder: Path) -> str:
    path = folder / RESULTS_NAME if folder.is_dir() else folder
    return f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC"


def _method(found: Sequence[Difference]) -> str:
    asked = sum(one.p is not None for one in found)
    return (
        "<p>Lines are 95 % intervals. A difference is taken item by item, so that what is hard "
        "for all does not blur it: its interval is a percentile bootstrap over items, its p how "
        "often a difference as large comes about where a draw decides which item is whose. "
        f"Holm's correction counts all {asked} p-values of this page as asked at once. A "
        "figure without scores of single items stands side by side; whether its intervals "
        "overlap says less than a paired difference would.</p>"
    )
