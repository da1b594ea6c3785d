"""Small pieces of HTML that the report is put together from."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import soundfile
from torch import Tensor


def escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def page(title: str, body: Iterable[str], *, head: str = "") -> str:
    """A whole document; all that it needs is inside it, ``head`` in its head."""
    style = (resources.files("speechlm.evaluation") / "report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n{head}</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str, note: str = "") -> str:
    """A heading and what belongs under it; nothing when all parts are empty."""
    if not any(parts):
        return ""
    said = f'<p class="note">{note}</p>' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{said}" + "\n".join(parts) + "\n</section>"


def player(wave: Tensor, sample_rate: int, label: str) -> str:
    """A player of float32 [T], lossless, inside the page."""
    written = io.BytesIO()
    samples = wave.detach().cpu().clamp(-1.0, 1.0).numpy()
    soundfile.write(written, samples, sample_rate, format="FLAC", subtype="PCM_16")
    data = base64.b64encode(written.getvalue()).decode()
    return (
        f'<audio controls preload="metadata" aria-label="{escape(label)}" '
        f'src="data:audio/flac;base64,{data}"></audio>'
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]], caption: str) -> str:
    """A table whose first column names its rows."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = [
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    ]
    if not lines:
        return ""
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>" + "\n".join(lines) + "</tbody></table></div>"
    )


def card(title: str, value: str, note: str = "", drawing: str = "") -> str:
    """One head figure."""
    return (
        f'<div class="card"><h3>{escape(title)}</h3><p class="value">{escape(value)}</p>'
        f"{drawing}" + (f'<p class="note">{escape(note)}</p>' if note else "") + "</div>"
    )


def interval_bar(row: Mapping[str, Any], ceiling: float | None) -> str:
    """A proportion from 0 to 1 with its interval, and the ceiling as a mark."""
    if row["accuracy"] is None:
        return ""
    low, high, accuracy = (100 * row[key] for key in ("low", "high", "accuracy"))
    said = f"{accuracy:.1f} %, 95 % interval {low:.1f} to {high:.1f} %"
    mark = ""
    if ceiling is not None:
        mark = f'<i class="ceiling" style="left:{100 * ceiling:.2f}%"></i>'
        said += f", ceiling {100 * ceiling:.1f} %"
    return (
        f'<div class="bar" role="img" aria-label="{escape(said)}">'
        f'<i class="fill" style="width:{accuracy:.2f}%"></i>'
        f'<i class="interval" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>{mark}</div>'
    )


def track(
    value: float,
    ci95: tuple[float, float] | None,
    axis: tuple[float, float],
    said: str,
    mark: float | None = None,
) -> str:
    """A value as a dot with its interval as a line, on an axis from one end to the other."""

    def place(number: float) -> float:
        return 100 * min(max((number - axis[0]) / (axis[1] - axis[0]), 0.0), 1.0)

    drawn = "" if mark is None else f'<i class="zero" style="left:{place(mark):.2f}%"></i>'
    if ci95 is not None:
        low, high = (place(end) for end in ci95)
        drawn += f'<i class="interval" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
    return (
        f'<div class="track" role="img" aria-label="{escape(said)}">{drawn}'
        f'<i class="dot" style="left:{place(value):.2f}%"></i></div>'
    )
