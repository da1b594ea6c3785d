"""What the server counts, for Prometheus and for its log: figures, never sound, text or tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.2, 0.3, 0.4, 0.6, 1.0, 2.0, 5.0)
FIGURES = {
    "policy_wait": "From the end of speech to the policy's decision",
    "decision_to_units": "From the decision to answer to the first units",
    "decision_to_audio": "From the decision to answer to the first audio",
    "frame_p50": "Median time of a frame of an answer",
    "frame_p95": "95th percentile of the time of a frame of an answer",
    "frame_p99": "99th percentile of the time of a frame of an answer",
    "cancel_delay": "From an interruption to the end of the answer",
}
"""Of a turn, in ms there and in s here."""


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, log: TextIO | None = None) -> None:
        """Begin at zero; ``log`` gets a JSON line a turn."""
        self._log = log
        self._registry = CollectorRegistry()
        self._refusals = self._counter("refusals", "Callers turned away", "code")
        self._errors = self._counter("errors", "Errors told to clients", "code")
        self._turns = self._counter("turns", "Answers, by how they ended", "status")
        self._dropped = self._counter("dropped_seconds", "Input dropped because of its backlog")
        self._bytes = self._counter("bytes", "Bytes of messages and bodies", "direction")
        self._answered = self._counter("answer_seconds", "Length of all answers")
        self._histograms = {
            name: Histogram(
                f"speechlm_{name}_seconds", what, buckets=SECONDS, registry=self._registry
            )
            for name, what in FIGURES.items()
        }

    def gauge(self, name: str, what: str, read: Callable[[], float]) -> None:
        """Show a value that something else keeps."""
        Gauge(f"speechlm_{name}", what, registry=self._registry).set_function(read)

    def turn(self, figures: Mapping[str, Any]) -> None:
        """Count an answer by what :class:`~speechlm.dialogue.messages.TurnMeasured` says."""
        self._turns.labels(str(figures.get("status"))).inc()
        for name, histogram in self._histograms.items():
            if figures.get(name) is not None:
                histogram.observe(figures[name] / 1000)
        self._answered.inc(figures.get("answer_s") or 0.0)
        if self._log is not None:
            line = {"time": round(time.time(), 3), **figures}
            self._log.write(json.dumps(line, default=str) + "\n")
            self._log.flush()

    def refused(self, code: str) -> None:
        self._refusals.labels(code).inc()

    def error(self, code: str) -> None:
        self._errors.labels(code).inc()

    def dropped(self, seconds: float) -> None:
        self._dropped.inc(seconds)

    def received(self, num_bytes: int) -> None:
        self._bytes.labels("in").inc(num_bytes)

    def sent(self, num_bytes: int) -> None:
        self._bytes.labels("out").inc(num_bytes)

    def render(self) -> bytes:
        """All of them as Prometheus reads them."""
        return generate_latest(self._registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"speechlm_{name}", what, labels, registry=self._registry)
