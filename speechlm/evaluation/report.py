"""The report of a run: one HTML file with everything in it, to read, listen to and pass on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from speechlm.config import RunConfig
from speechlm.evaluation import figures
from speechlm.evaluation.page import (
    card,
    escape,
    interval_bar,
    page,
    player,
    section,
    table,
)
from speechlm.files import write_aside

REPORT_NAME = "report.html"
METRICS_NAME = "metrics.jsonl"
"""What training wrote, a JSON object a line."""

_JUDGED = {
    "recorded": ("recorded answers", "how well the judge hears the original recordings"),
    "resynthesized": ("resynthesized", "recordings through tokenizer and vocoder: the ceiling"),
    "unseen": ("replies to unseen voices", "asked by voices that training never heard"),
    "seen": ("replies to seen voices", "asked by voices that training heard"),
}
_LISTS = ("benchmarks", "counts", "confusions", "left_out", "versions", "families", "unseen_voices")
"""Parts of the figures that are shown elsewhere or too long for the table of all."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clip:
    """One recording of an example."""

    title: str
    wave: Tensor
    """float32 [T]."""
    sample_rate: int
    """Hz."""
    heard: str | None = None
    """What the judge heard; None where it was not asked."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Example:
    """A question and its answers, to be listened to."""

    group: str
    """``seen`` or ``unseen``, its voice in training."""
    question_text: str
    speaker: str
    expected: str
    clips: tuple[Clip, ...]
    """The question first and the model's answer last."""


def write_report(config: RunConfig, report: Mapping[str, Any], examples: Sequence[Example]) -> Path:
    """Write ``report.html`` under ``config.output``.

    Args:
        report: What :func:`speechlm.evaluation.evaluate.evaluate` measured.

    Returns:
        Its path.

    Raises:
        PluginError: matplotlib is not installed.
    """
    figures.require_matplotlib()
    title = f"Speech language model: {config.output.name}"
    parts = [
        f"<header><h1>{escape(title)}</h1>{_summary(report)}</header>",
        _head_figures(report),
        section(
            "Listen",
            *(_example(number, example) for number, example in enumerate(examples, start=1)),
            note="Half of the questions come from voices that training never heard. Some that "
            "went wrong are among them on purpose, so these are not a fair sample.",
        ),
        section(
            "Where it goes right and wrong",
            f'<div class="tables">{"".join(_breakdown(report["judge"]))}</div>',
        ),
        *_benchmarks(report),
        section("How it came about", _charts(config, report)),
        section("All figures", *_tables(report)),
        section("How to reproduce this", *_reproduction(config, report)),
    ]
    path = config.output / REPORT_NAME
    with write_aside(path) as aside:
        aside.write_text(page(title, parts), encoding="utf-8")
    return path


def _summary(report: Mapping[str, Any]) -> str:
    model = report["model"]
    return (
        f"<p>{model['vocab_size']} units at {model['frame_rate']:g} Hz, a language model of "
        f"{model['lm_parameters'] / 1e6:.1f} M parameters, sound at {model['sample_rate']} Hz; "
        f"measured on {escape(report['machine']['cpu'])}, {report['machine']['cores']} cores.</p>"
    )


def _head_figures(report: Mapping[str, Any]) -> str:
    judge = report["judge"]
    ceiling = judge["resynthesized"]["accuracy"]
    accuracies = []
    for name, (title, note) in _JUDGED.items():
        row = judge[name]
        value = "none asked" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
        told = f"95 % interval {100 * row['low']:.1f} to {100 * row['high']:.1f} %, n = {row['n']}"
        mark = ceiling if name in ("seen", "unseen") else None
        accuracies.append(card(title, value, f"{note}; {told}", interval_bar(row, mark)))
    perplexity, latency = report["unit_perplexity"]["answer"], report["first_audio_latency"]
    usage = report["codebooks"][0]
    others = [
        card(
            "unit perplexity",
            f"{perplexity['perplexity']:.2f}",
            f"on recorded answers to unseen voices; 95 % interval {perplexity['low']:.2f} "
            f"to {perplexity['high']:.2f}",
        ),
        card(
            "units in use",
            f"{usage['used']} of {usage['size']}",
            f"as varied as {usage['perplexity']:.0f} equally frequent ones",
        ),
    ]
    if latency["n"]:
        others.append(
            card(
                "first sound after",
                f"{1000 * latency['median_s']:.0f} ms",
                f"median wait after a question's end; 95 % of {latency['n']} within "
                f"{1000 * latency['p95_s']:.0f} ms",
            )
        )
    factors = report["real_time_factor"]
    whole = sum(factors.get(stage, 0.0) for stage in ("tokenize", "generate", "vocode"))
    others.append(
        card(
            "work a second of sound",
            f"{1000 * whole:.0f} ms",
            "to tokenize, generate and render it, in batches",
        )
    )
    return section(
        "What an outside judge hears",
        f'<div class="cards">{"".join(accuracies)}</div>',
        f'<div class="cards">{"".join(others)}</div>',
        _left_out(judge),
        note="The judge is a speech recognizer that was trained elsewhere (pocketsphinx), "
        "choosing among the answers of this corpus. The dark line is the 95 % interval, the "
        "upright mark the ceiling: no reply can be expected to be clearer than a resynthesized "
        "recording.",
    )


def _left_out(judge: Mapping[str, Any]) -> str:
    if not judge["left_out"]:
        return '<p class="note">The judge hears every one of these recorded answers right.</p>'
    words = ", ".join(
        f"“{escape(row['expected'])}” (heard as “{escape(row['heard'])}”)"
        for row in judge["left_out"]
    )
    rows = (
        f"{escape(_JUDGED[name][0])} {100 * judge[name]['nothing_left_out']['accuracy']:.1f} %"
        for name in ("resynthesized", "unseen", "seen")
        if judge[name]["n"]
    )
    return (
        f'<p class="note">Left out of all but the first, since the judge mishears them in the '
        f"original: {words}. With nothing left out: {', '.join(rows)}.</p>"
    )


def _example(number: int, example: Example) -> str:
    reply = example.clips[-1]
    right = reply.heard == example.expected
    verdict = "understood" if right else f"heard as “{reply.heard}”" if reply.heard else "not heard"
    answers_s = max(len(clip.wave) / clip.sample_rate for clip in example.clips[1:])
    shown = "".join(
        _clip(clip, number, answers_s if index else len(clip.wave) / clip.sample_rate)
        for index, clip in enumerate(example.clips)
    )
    return (
        f'<article class="example"><header><h3>{number}. {escape(example.question_text)}</h3>'
        f'<span class="badge {"good" if right else "bad"}">{escape(verdict)}</span>'
        f'<span class="note">{example.group} voice {escape(example.speaker)}, expected '
        f'“{escape(example.expected)}”</span></header><div class="clips">{shown}</div></article>'
    )


def _clip(clip: Clip, number: int, longest_s: float) -> str:
    duration_s = len(clip.wave) / clip.sample_rate
    if not len(clip.wave):
        return f"<figure><h4>{escape(clip.title)}</h4><p>no sound at all</p></figure>"
    alt = f"Spectrogram of {clip.title}, example {number}, {duration_s:.2f} s"
    heard = "" if clip.heard is None else f"judge: “{clip.heard or 'nothing'}”"
    return (
        f"<figure><h4>{escape(clip.title)}</h4>"
        + player(clip.wave, clip.sample_rate, clip.title)
        + figures.spectrogram(clip.wave, clip.sample_rate, max(longest_s, 0.1), alt)
        + f"<figcaption>{escape(heard)}</figcaption></figure>"
    )


def _breakdown(judge: Mapping[str, Any]) -> Iterator[str]:
    names = list(_JUDGED)
    header = [_JUDGED[name][0] for name in names]
    yield table(
        ["kind of question", *header],
        (
            [family, *(_share(rows.get(name)) for name in names)]
            for family, rows in sorted(judge["families"].items())
        ),
        "Understood, by kind of question",
    )
    confusions = [
        (f"{row['expected']} → {row['heard'] or 'nothing'}", _JUDGED[name][0], row["count"])
        for name in names
        for row in judge["confusions"][name]
    ]
    yield table(
        ["expected → heard", "in", "times"],
        sorted(confusions, key=lambda row: -row[2])[:20],
        "The most frequent mistakes",
    )
    voices = sorted(judge["unseen_voices"].items(), key=lambda item: item[1]["accuracy"] or 0.0)
    yield table(
        ["unseen voice", "understood"],
        ([voice, _share(row)] for voice, row in voices),
        "Understood, by asking voice, the hardest first",
    )


def _benchmarks(report: Mapping[str, Any]) -> Iterator[str]:
    rows = report["benchmarks"]
    if not rows:
        return
    header = ["benchmark", "variant", "figure", "95 % interval", "items"]
    whole = [_benchmark(row) for row in rows if not row["subset"] or row["error"]]
    parts = [_benchmark(row) for row in rows]
    shown = table(header, parts, "With all parts of their data")
    yield section(
        "Benchmarks",
        table(header, whole, "Each by every definition in use"),
        f"<details><summary>Every part of their data</summary>{shown}</details>",
        note="Those called mini were made on the spot, small and in these embedded voices: they "
        "say whether this model learnt anything and are not comparable with papers. Of pairs, "
        "50 is chance.",
    )


def _benchmark(row: Mapping[str, Any]) -> Sequence[str]:
    name = "/".join(part for part in (row["metric"], row["subset"]) if part)
    if row["value"] is None:
        return name, row["variant"], row["error"], "", str(row["n"])
    low, high = row["ci95"] or (None, None)
    told = "" if low is None else f"{low:.1f} to {high:.1f}"
    return name, row["variant"], f"{row['value']:.2f}", told, str(row["n"])


def _share(row: Mapping[str, Any] | None) -> str:
    if row is None or row["accuracy"] is None:
        return "none"
    return f"{100 * row['accuracy']:.0f} % of {row['n']}"


def _charts(config: RunConfig, report: Mapping[str, Any]) -> str:
    drawn = {
        "Training": figures.training_curve(_metrics(config.train_path / METRICS_NAME)),
        "Use of units": figures.unit_usage(report["codebooks"]),
        "Time of each stage": figures.stage_times(report["seconds"]),
    }
    return (
        '<div class="charts">'
        + "".join(
            f'<figure class="chart"><h3>{title}</h3>{svg}</figure>'
            for title, svg in drawn.items()
            if svg
        )
        + "</div>"
    )


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of training's records; a line that a kill cut short is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def _tables(report: Mapping[str, Any]) -> Iterator[str]:
    rows = (
        (name, f"{value:.4g}" if isinstance(value, float) else value)
        for name, value in _flatten(report)
    )
    shown = table(["figure", "value"], rows, "As in report.json")
    yield f"<details><summary>Every figure of report.json</summary>{shown}</details>"


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _LISTS:
                yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _flatten(inner, f"{name}[{index}]")
    else:
        yield name, "none" if value is None else value


def _reproduction(config: RunConfig, report: Mapping[str, Any]) -> Iterator[str]:
    settings = yaml.safe_dump(differences(config, RunConfig()), sort_keys=False)
    stages = ("corpus", "fit", "tokenize", "train", "evaluate")
    commands = "\n".join(f"speechlm {stage} run.yaml" for stage in stages)
    yield (
        f"<p>Save this as <code>run.yaml</code>, all that differs from the defaults:</p>"
        f"<pre>{escape(settings)}</pre><p>and run</p><pre>{commands}</pre>"
    )
    yield table(["package", "version"], report["versions"].items(), "Measured with")


def differences(value: Any, default: Any) -> dict[str, Any]:
    """What of a configuration differs from another, as plain values for YAML."""
    found: dict[str, Any] = {}
    for field in fields(value):
        own, other = getattr(value, field.name), getattr(default, field.name)
        if own == other:
            continue
        if is_dataclass(own):
            found[field.name] = differences(own, other)
        elif isinstance(own, Path):
            found[field.name] = str(own)
        else:
            found[field.name] = list(own) if isinstance(own, tuple) else own
    return found
