"""The page of ``speechlm inspect tokenizer``: one HTML file, to read, hear and pass on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechlm.evaluation import figures as drawings
from speechlm.evaluation.inspection import Sample
from speechlm.evaluation.page import card, escape, page, player, section, table
from speechlm.files import write_aside

LIST_ROWS = 8
"""Codebooks that the table of usage shows."""


def write_inspection(
    path: Path,
    measured: Mapping[str, Any],
    samples: Sequence[Sample],
    rates: tuple[int, int],
) -> None:
    """Write what :func:`speechlm.evaluation.inspection.inspect_tokenizer` found as a page.

    Args:
        path: The HTML file.
        measured: The figures.
        samples: What to listen to.
        rates: Of recorded and of resynthesized waves, Hz.

    Raises:
        PluginError: matplotlib is not installed.
    """
    drawings.require_matplotlib()
    tokenizer = measured["tokenizer"]
    title = f"Tokenizer {tokenizer['fingerprint']}"
    n, seconds = measured["recordings"]["n"], measured["recordings"]["seconds"]
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{escape(_sentence(tokenizer))} Measured on {n} "
        f"recordings, {seconds:.0f} s.</p></header>",
        f'<div class="cards">{"".join(_cards(measured))}</div>',
        section(
            "Listen",
            *(_sample(each, rates) for each in samples),
            note="Each recording, and what is left of it after tokenizer and vocoder.",
        ),
        section(
            "How units are used",
            f'<div class="charts"><figure class="chart">'
            f"{drawings.unit_usage(measured['codebooks'][:LIST_ROWS])}</figure></div>",
            _usage(measured["codebooks"]),
        ),
        section(
            "Whether units hang on how they are made",
            _agreement(measured),
            note="The share of units that are the same as those of the recording alone and whole.",
        ),
    ]
    with write_aside(path) as aside:
        aside.write_text(page(title, parts), encoding="utf-8")


def _sentence(tokenizer: Mapping[str, Any]) -> str:
    books = tokenizer["num_codebooks"]
    return (
        f"{tokenizer['sample_rate']} Hz in, {tokenizer['frame_rate']:g} frames/s of "
        f"{books} codebook{'s' * (books > 1)} of {tokenizer['vocab_size']} units; streams "
        f"{tokenizer['streaming']}, {tokenizer['lookahead_ms']:.0f} ms of lookahead."
    )


def _cards(measured: Mapping[str, Any]) -> Iterator[str]:
    tokenizer, rates = measured["tokenizer"], measured["rates"]
    yield card(
        "bit rate",
        f"{tokenizer['bits_per_second']:,.0f} bit/s",
        f"{rates['entropy_bits_per_second']:,.0f} bit/s by how often each unit comes",
    )
    yield card(
        "units a second",
        f"{rates['units_per_second']:.1f}",
        f"{rates['collapsed_units_per_second']:.1f} once repeats are collapsed",
    )
    yield card(
        "tokenizes", f"{measured['speed']['times_real_time']:.0f} x real time", "on this machine"
    )
    if "phones" in measured:
        phones = measured["phones"]
        yield card(
            "PNMI",
            f"{phones['pnmi']:.3f}",
            f"phone purity {phones['phone_purity']:.3f}, cluster purity "
            f"{phones['cluster_purity']:.3f}, {phones['phones']} phones",
        )
    if "resynthesis" in measured:
        yield from _resynthesis_cards(measured["resynthesis"])


def _resynthesis_cards(resynthesis: Mapping[str, Any]) -> Iterator[str]:
    yield card(
        "renders",
        f"{resynthesis['times_real_time']:.0f} x real time",
        f"first sound after {resynthesis['first_sound_ms']:.0f} ms, {resynthesis['vocoder']}",
    )
    judge = resynthesis.get("judge")
    if judge is None:
        return
    if "left_out" in judge:
        yield card("word error", "not measured", judge["left_out"])
        return
    recorded, rendered, grown = judge["recorded"], judge["resynthesized"], judge["grown"]
    yield card(
        "word error, resynthesized",
        f"{100 * rendered['word_error']:.1f} %",
        f"recorded {100 * recorded['word_error']:.1f} %; difference "
        f"{100 * grown['difference']:+.1f} points, 95 % interval {100 * grown['low']:+.1f} to "
        f"{100 * grown['high']:+.1f}; {recorded['n']} recordings, {judge['sentences']} sentences "
        "to tell apart",
    )


def _usage(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(
        ("codebook", "used", "of", "perplexity"),
        [(n, row["used"], row["size"], f"{row['perplexity']:.1f}") for n, row in enumerate(rows)],
        "Units that occur, and how many equally frequent ones would be as surprising",
    )


def _agreement(measured: Mapping[str, Any]) -> str:
    found = measured["agreement"]
    rows = [("in a padded batch", f"{100 * found['batch']:.3f} %")]
    rows += [(f"streamed by {size}", f"{100 * v:.3f} %") for size, v in found["chunks"].items()]
    if "seams" in measured:
        rows.append(("computed in one piece", f"{100 * measured['seams']['agreement']:.3f} %"))
    return table(("how", "the same"), rows, "")


def _sample(sample: Sample, rates: tuple[int, int]) -> str:
    longest_s = max(len(sample.recorded) / rates[0], len(sample.resynthesized) / rates[1])
    clips = []
    for title, wave, rate in (
        ("recorded", sample.recorded, rates[0]),
        ("resynthesized", sample.resynthesized, rates[1]),
    ):
        alt = f"Spectrogram, {title}: {sample.text}"
        clips.append(
            f"<figure><h4>{title}</h4>{player(wave, rate, f'{title}: {sample.text}')}"
            f"{drawings.spectrogram(wave, rate, longest_s, alt)}</figure>"
        )
    return (
        f'<article class="example"><header><strong>{escape(sample.text or sample.title)}</strong>'
        f'<span class="note">{escape(sample.title)}</span></header>'
        f'<div class="clips">{"".join(clips)}</div></article>'
    )
