"""What the benchmarks share: times in turns, a table, a JSON file; and `make bench`.

    make bench                                  all that can run here, and a summary
    make bench ARGS='decoding --pairs 9'        one subject; its --help says more
    .venv/bin/python tests/benchmarks/decoding.py --threads 1       the same without make

Each compares with a peer that does the same work in the same process, with the same weights and
threads. The two take turns, so that whatever else the machine is doing falls on both; a ratio is
the median of the ratios of the rounds. No absolute time here means anything on another machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.table import Table

from speechlm.doctor import cpu_features, cpu_name, usable_cores, version

SUBJECTS = (
    "decoding",
    "batching",
    "scoring",
    "depth",
    "latency",
    "mimi",
    "vocoders",
    "ssl_units",
    "measuring",
    "abx",
    "gpu",
)
PAIRS = 5
CANNOT_RUN = 2
"""Exit status of a script that lacks its peer or its device; it says in a line what to do."""

Times = dict[str, list[float]]
"""Seconds of each round, by contender."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison, or one figure."""

    what: str
    value: float
    unit: str = "times"
    target: float | None = None
    """What ``value`` should reach; None where nothing was promised."""
    at_most: bool = False
    """The target is a bound from above."""
    ours: str = ""
    theirs: str = ""
    spread: tuple[float, float] | None = None
    """Least and largest of the rounds."""
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(kw_only=True, slots=True)
class Benchmark:
    """A subject's rows, shown and written when it ends."""

    name: str
    title: str
    args: argparse.Namespace
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader must know to believe the rows, a line each."""

    def add(self, row: Row) -> None:
        # Tiny shapes show that a script runs, not that it is fast.
        self.rows.append(replace(row, target=None) if self.args.quick else row)

    def compare(
        self,
        what: str,
        times: Times,
        ours: str,
        theirs: str,
        *,
        amount: float = 1,
        unit: str = "ms",
        target: float | None = None,
        note: str = "",
    ) -> None:
        """Add how many times faster ``ours`` is; both times are shown a piece of ``amount``."""
        ratios = ratios_of(times, ours, theirs)
        shown = (f"{1e3 * statistics.median(times[n]) / amount:.3g} {unit}" for n in (ours, theirs))
        mine, peers = shown
        self.add(
            Row(
                what=what,
                value=statistics.median(ratios),
                target=target,
                ours=mine,
                theirs=peers,
                spread=(min(ratios), max(ratios)),
                note=note,
            )
        )

    def finish(self) -> None:
        """Print the table, write the JSON file."""
        console = _console()
        console.print(table(self.title, self.rows))
        for line in self.notes:
            console.print(f"  {line}", highlight=False)
        path: Path = self.args.out / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {
            "benchmark": self.name,
            "title": self.title,
            "quick": self.args.quick,
            "machine": machine(),
            "rows": [{**asdict(row), "met": row.met} for row in self.rows],
            "notes": self.notes,
        }
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        console.print(f"  written to {path}", highlight=False)


def start(name: str, title: str, words: list[str] | None, about: str | None) -> Benchmark:
    """Read the command line: ``--quick``, ``--threads``, ``--pairs`` and ``--out``.

    Args:
        name: The subject's.
        title: What is compared.
        words: The command line; None for the process's.
        about: The script's docstring, which ``--help`` shows.
    """
    parser = argparse.ArgumentParser(
        prog=f"{name}.py", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes: only shows that it runs")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of torch")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="rounds to take the median of")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the JSON")
    args = parser.parse_args(words)
    if args.quick:
        args.pairs = 1
    torch.set_num_threads(args.threads)
    return Benchmark(name=name, title=title, args=args)


def cannot_run(line: str) -> NoReturn:
    """End a script whose peer or device is not here, saying in a line what to do."""
    print(line, file=sys.stderr)
    sys.exit(CANNOT_RUN)


def in_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, *, warm: bool = False
) -> Times:
    """Time each contender once a round, after a run of each that does not count.

    Args:
        contenders: What to time, by name.
        rounds: How often.
        warm: All have run already, so the first run counts.
    """
    for run in () if warm else contenders.values():
        run()
    times: Times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            begun = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - begun)
    return times


def ratios_of(times: Times, ours: str, theirs: str) -> list[float]:
    """How many times longer they took, in each round."""
    return [theirs_s / ours_s for ours_s, theirs_s in zip(times[ours], times[theirs], strict=True)]


def read_rate(num_bytes: int, device: str = "cpu") -> float:
    """Bytes a second that this many bytes are read at, caches included: the best of a few ways."""
    count = max(num_bytes // 4, 1024)
    memory = torch.randn(count, device=device)
    ways = (memory.sum, lambda: torch.dot(memory, memory), memory.amax)
    best = min(_shortest(way, device) for way in ways)
    return 4 * count / best


def matrix_rate(size: int, device: str = "cpu") -> float:
    """Multiplications and additions a second in a product of two large bfloat16 matrices."""
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / _shortest(lambda: matrix @ matrix, device)


def _shortest(run: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(12):
        begun = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times)


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu_name(),
        "features": cpu_features(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("torch", "transformers", "moshi", "speechlm")},
    }


def _console() -> Console:
    """The terminal, or a wide page where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def table(title: str, rows: list[Row]) -> Table:
    shown = Table(title=title, title_justify="left")
    shown.add_column("what")
    for heading in ("ours", "theirs", "result", "of rounds", "target"):
        shown.add_column(heading, justify="right")
    shown.add_column("")
    for row in rows:
        sign = "≤" if row.at_most else "≥"
        shown.add_row(
            row.what,
            row.ours,
            row.theirs,
            f"{_figure(row.value)} {row.unit}",
            "" if row.spread is None else " - ".join(map(_figure, row.spread)),
            "" if row.target is None else f"{sign} {row.target:g} {row.unit}",
            {None: row.note, True: f"met {row.note}", False: f"MISSED {row.note}"}[row.met],
        )
    return shown


def _figure(value: float) -> str:
    """Three digits, and all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> None:
    """Run subjects one after another, each in its own process, and sum up."""
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description=__doc__,
        epilog="further flags, such as --quick or --pairs 9, are passed on to each subject",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subjects", nargs="*", metavar="subject", help=", ".join(SUBJECTS))
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="folder of the JSON files"
    )
    args, passed_on = parser.parse_known_args()
    if unknown := set(args.subjects) - set(SUBJECTS):
        parser.error(f"expected some of {', '.join(SUBJECTS)}, got {', '.join(sorted(unknown))}")
    results, failed = [], []
    for name in args.subjects or SUBJECTS:
        script = Path(__file__).with_name(f"{name}.py")
        done = subprocess.run([sys.executable, script, "--out", args.out, *passed_on], check=False)
        if done.returncode == 0:
            results.append(json.loads((args.out / f"{name}.json").read_text(encoding="utf-8")))
        elif done.returncode != CANNOT_RUN:
            failed.append(name)
    promised = []
    for result in results:
        for values in result["rows"]:
            del values["met"]  # it follows from the others
            row = Row(**values)
            if row.target is not None:
                promised.append(replace(row, what=f"{result['benchmark']}: {row.what}"))
    if len(results) > 1 and promised:
        _console().print(table("what was promised", promised))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
