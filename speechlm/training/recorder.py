"""What a run says of itself: ``metrics.jsonl``, TensorBoard, and a plain line now and then.

A line of ``metrics.jsonl`` is one step or one validation::

    {"split": "train", "step": 20, "nll": 3.21, "accuracy": 0.28, "learning_rate": 2e-4, …}
    {"split": "valid", "step": 20, "nll": 3.35, "accuracy": 0.26, "unit_perplexity": 28.5}

``nll`` is in nats a unit; ``seconds`` is how long the run has trained, over all its resumptions.
A layout of several rows has the ``nll`` of each in ``row_nll``. A tokenizer or vocoder in training
has the terms of its loss instead, by their names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO, final

from fairseq2.metrics.recorders import MetricRecorder
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from speechlm.files import write_aside
from speechlm.progress import say

METRICS_NAME = "metrics.jsonl"


class Wording(Protocol):
    """What a kind of training reports."""

    rate: str
    """What its speed is called in a record."""

    def values(self, category: str, numbers: Mapping[str, float]) -> dict[str, Any]:
        """What a record of a step or a validation holds of what was measured."""
        ...

    def line(self, means: Mapping[str, float]) -> str:
        """The values of some steps, or of a validation, for a person."""
        ...


@final
class UnitLMWording:
    """Of the unit LM."""

    rate = "units_per_second"

    def values(self, category: str, numbers: Mapping[str, float]) -> dict[str, Any]:
        values: dict[str, Any] = {"nll": numbers["nll"], "accuracy": numbers["accuracy"]}
        rows = [name for name in row_metrics(len(numbers)) if name in numbers]
        if rows:
            values["row_nll"] = [numbers[name] for name in rows]
        if category != "train":
            values["unit_perplexity"] = math.exp(min(numbers["nll"], 50.0))
        return values

    def line(self, means: Mapping[str, float]) -> str:
        perplexity = means.get("unit_perplexity")
        unit_perplexity = "" if perplexity is None else f"unit perplexity {perplexity:.2f}, "
        return f"nll {means['nll']:.3f}, {unit_perplexity}accuracy {means['accuracy']:.3f}"


@final
class PartWording:
    """Of a tokenizer or vocoder: the terms of its loss, whatever they are called."""

    rate = "audio_seconds_per_second"

    def values(self, category: str, numbers: Mapping[str, float]) -> dict[str, Any]:
        return {
            name.removeprefix(TERM): value
            for name, value in numbers.items()
            if name.startswith(TERM)
        }

    def line(self, means: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in means.items())


TERM = "term/"
"""What marks a term of a part's loss among fairseq2's own metrics."""
OWN = ("split", "step", "learning_rate", "grad_norm", "seconds")
"""Keys of a record that are not its wording's."""


@final
class RunRecorder(MetricRecorder):
    """Records every step; opened when the first value comes, which is on rank 0 only."""

    def __init__(
        self,
        folder: Path,
        wording: Wording,
        *,
        max_steps: int,
        report_every: int,
        first_step: int,
    ) -> None:
        """Record into ``folder``, whose records of ``first_step`` and later are void."""
        self._folder = folder
        self._wording = wording
        self._max_steps = max_steps
        self._report_every = report_every
        self._first_step = first_step
        self._file: TextIO | None = None
        self._board: SummaryWriter | None = None
        self._window: list[dict[str, Any]] = []

    def record_metric_values(
        self, category: str, values: Mapping[str, object], step_nr: int | None = None
    ) -> None:
        numbers = {name: _number(value) for name, value in values.items()}
        record: dict[str, Any] = {"split": category, "step": step_nr}
        record |= self._wording.values(category, numbers)
        if category == "train":
            spent = max(numbers["data_time"] + numbers["compute_time"], 1e-9)
            record |= {
                "learning_rate": numbers["lr"],
                "grad_norm": numbers["grad_norm"],
                self._wording.rate: numbers["amount"] / spent,
                "seconds": numbers["total_time"],
            }
        self._write(record)
        if category == "train":
            self._window.append(record)
            if record["step"] % self._report_every == 0 or record["step"] == self._max_steps:
                self._report()
        else:
            self._report_validation(record)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()  # type: ignore[no-untyped-call]

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            forget_steps(self._folder / METRICS_NAME, self._first_step)
            self._file = (self._folder / METRICS_NAME).open("a", encoding="utf-8")
            self._board = SummaryWriter(  # type: ignore[no-untyped-call]
                self._folder / "tensorboard", purge_step=self._first_step
            )
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def _report(self) -> None:
        last = self._window[-1]
        means = {
            name: sum(record.get(name, 0.0) for record in self._window) / len(self._window)
            for name, value in last.items()
            if isinstance(value, float) and name not in OWN
        }
        rate = means.pop(self._wording.rate)
        pace = _pace(self._window)
        left = pace * (self._max_steps - last["step"])
        unit = self._wording.rate.removesuffix("_per_second").replace("_", " ")
        say(
            f"step {last['step']} of {self._max_steps}: {self._wording.line(means)}, "
            f"{rate:,.0f} {unit}/s, {_duration(left)} left"
        )
        grad_norm = sum(record["grad_norm"] for record in self._window) / len(self._window)
        means |= {self._wording.rate: rate, "grad_norm": grad_norm}
        self._plot("train", {**means, "learning_rate": last["learning_rate"]}, last["step"])
        self._window = []

    def _report_validation(self, record: dict[str, Any]) -> None:
        values = {
            name: value
            for name, value in record.items()
            if isinstance(value, float) and name not in OWN
        }
        say(f"validation at step {record['step']}: {self._wording.line(values)}")
        self._plot("valid", values, record["step"])

    def _plot(self, category: str, values: Mapping[str, float], step: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(  # type: ignore[no-untyped-call]
                    f"{category}/{name}", value, step
                )
            self._board.flush()  # type: ignore[no-untyped-call]


def row_metrics(num_rows: int) -> list[str]:
    """What the metrics of each row are called; none where there is but one."""
    return [f"nll_of_row_{row}" for row in range(num_rows)] if num_rows > 1 else []


def forget_steps(path: Path, first_step: int) -> None:
    """Drop the records of ``first_step`` and later, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] < first_step:
            kept.append(line + "\n")
    with write_aside(path) as aside:
        aside.write_text("".join(kept), encoding="utf-8")


def _number(value: object) -> float:
    if isinstance(value, list | tuple):  # one learning rate a parameter group, all the same
        return _number(value[0])
    assert isinstance(value, int | float | Tensor)
    return float(value)


def _pace(window: list[dict[str, Any]]) -> float:
    """Seconds a step."""
    if len(window) < 2:
        return 0.0
    elapsed: float = window[-1]["seconds"] - window[0]["seconds"]
    return elapsed / (len(window) - 1)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
