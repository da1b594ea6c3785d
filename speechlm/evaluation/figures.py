"""Drawings of the report, as inline SVG that takes the page's text colour."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from speechlm.errors import PluginError

TEXT_COLOUR = "#010203"
"""Stands for ``currentColor``, which matplotlib does not know; dark pages need it."""
ACCENT = "#2f7fd6"
SECOND = "#d9822b"
WIDTH_IN = 4.6
"""Width of a chart, inches of 72 px: legible on a phone and two a row on a desk."""
NUM_MELS = 64
DYNAMIC_RANGE_DB = 70.0
MARKED_HZ = (250, 1000, 4000)
TICK_STEPS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


def require_matplotlib() -> None:
    """Fail now rather than after all was measured.

    Raises:
        PluginError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise PluginError(
            "the report's drawings need the package matplotlib; "
            "run pip install 'speechlm[evaluate]'"
        ) from error


def spectrogram(wave: Tensor, sample_rate: int, longest_s: float, alt: str) -> str:
    """Draw float32 [T] as a log-mel spectrogram on a time axis of ``longest_s``."""
    levels_db, edges_hz = _log_mel(wave, sample_rate)
    figure, axes = _canvas(3.3, 1.6)
    axes.set_facecolor("none")
    duration_s = len(wave) / sample_rate
    axes.imshow(
        levels_db.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0.0, duration_s, 0.0, NUM_MELS),
        cmap="magma",
        vmin=-DYNAMIC_RANGE_DB,
        vmax=0.0,
        interpolation="none",
    )
    axes.set_xlim(0.0, longest_s)
    axes.set_ylim(0.0, NUM_MELS)
    step_s = next((step for step in TICK_STEPS_S if longest_s / step <= 6), TICK_STEPS_S[-1])
    axes.set_xticks([step_s * tick for tick in range(int(longest_s / step_s) + 1)])
    axes.set_xlabel("seconds")
    marked = [hz for hz in MARKED_HZ if hz < sample_rate / 2]
    axes.set_yticks([int((edges_hz < hz).sum()) for hz in marked])
    axes.set_yticklabels([f"{hz / 1000:g}" for hz in marked])
    axes.set_ylabel("kHz")
    return _svg(figure, alt)


def _log_mel(wave: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Levels float32 [NUM_MELS, frames] in dB below the loudest, and the bands' centres, Hz."""
    from torchaudio.functional import melscale_fbanks

    window = sample_rate // 40
    # torch.stft needs one window at least, and an empty answer is drawn too.
    padded = torch.nn.functional.pad(wave.float(), (0, max(0, 2 * window - len(wave))))
    spectrum = torch.stft(
        padded, 1024, sample_rate // 100, window, torch.hann_window(window), return_complex=True
    )
    filters = melscale_fbanks(513, 0.0, sample_rate / 2, NUM_MELS, sample_rate)
    power = filters.T @ spectrum.abs().square()
    levels_db = 10 * power.clamp_min(1e-10).log10()
    centres_hz = filters.argmax(dim=0) * sample_rate / 1024
    return (levels_db - levels_db.max()).clamp_min(-DYNAMIC_RANGE_DB), centres_hz


def training_curve(points: Sequence[Mapping[str, Any]]) -> str:
    """Draw the losses of ``metrics.jsonl``; empty when there are none."""
    series: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        if isinstance(point.get("nll"), int | float):
            label = "validation" if point["split"] == "valid" else "training"
            series.setdefault(label, []).append((float(point["step"]), float(point["nll"])))
    if not series:
        return ""
    figure, axes = _canvas(WIDTH_IN, 2.8)
    for label, values in sorted(series.items()):
        valid = label == "validation"
        axes.plot(
            *zip(*values, strict=True),
            color=SECOND if valid else ACCENT,
            marker="o" if valid else "",
            markersize=4,
            linewidth=1.5,
            label=label,
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a unit")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, labelcolor=TEXT_COLOUR)
    last = "; ".join(f"{name} ends at {values[-1][1]:.3f}" for name, values in series.items())
    return _svg(figure, f"Training curve: {last}")


def unit_usage(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw how often each unit occurs, sorted, a line a codebook."""
    figure, axes = _canvas(WIDTH_IN, 2.8)
    for index, row in enumerate(rows):
        counts = torch.tensor(row["counts"], dtype=torch.float64)
        shares = 100 * counts / counts.sum()
        label = f"codebook {index}" if len(rows) > 1 else None
        if len(rows) == 1:
            axes.fill_between(range(len(shares)), shares, color=ACCENT, alpha=0.3, linewidth=0)
        axes.plot(shares, color=None if len(rows) > 1 else ACCENT, linewidth=1.5, label=label)
    axes.axhline(100 / rows[0]["size"], color=SECOND, linewidth=1, linestyle="--")
    axes.annotate(
        "if all were equal",
        (rows[0]["size"], 100 / rows[0]["size"]),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        color=TEXT_COLOUR,
        fontsize=9,
    )
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, rows[0]["size"])
    axes.set_xlabel("units, the most frequent first")
    axes.set_ylabel("% of frames")
    if len(rows) > 1:
        axes.legend(frameon=False, labelcolor=TEXT_COLOUR)
    used = "; ".join(f"{row['used']} of {row['size']} used" for row in rows)
    return _svg(figure, f"Use of units, sorted: {used}")


def stage_times(seconds: Mapping[str, float]) -> str:
    """Draw how long each stage took."""
    figure, axes = _canvas(WIDTH_IN, 0.7 + 0.34 * len(seconds))
    names = list(seconds)
    bars = axes.barh(names, list(seconds.values()), color=ACCENT, height=0.65)
    axes.bar_label(bars, fmt="%.1f s", padding=4, color=TEXT_COLOUR, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlabel("seconds")
    told = "; ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    return _svg(figure, f"Time of each stage: {told}")


def _canvas(width_in: float, height_in: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(TEXT_COLOUR)
        axes.spines[side].set_alpha(0.5)
    axes.tick_params(colors=TEXT_COLOUR, labelsize=9, length=3)
    axes.xaxis.label.set(color=TEXT_COLOUR, size=9)
    axes.yaxis.label.set(color=TEXT_COLOUR, size=9)
    return figure, axes


def _svg(figure: Any, alt: str) -> str:
    import matplotlib

    from speechlm.evaluation.page import escape

    written = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace(TEXT_COLOUR, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several drawings share a page, so the ids of one must not meet another's.
    own = hashlib.sha256((alt + svg).encode()).hexdigest()[:10]
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'\bid="', f'id="{own}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{own}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
