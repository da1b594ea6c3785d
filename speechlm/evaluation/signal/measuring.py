"""Measuring many recordings on every core; results come in order, and none hangs on the number
of processes, each of which has one thread."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch

from speechlm.data.pool import leave_with_parent
from speechlm.doctor import usable_cores
from speechlm.errors import PartialFailure
from speechlm.evaluation.signal.scorers import Measured, Sample, measure

WORTH_A_PROCESS = 12
"""Recordings for which starting a process, seconds of importing, is worth it."""
AHEAD = 4
"""Recordings a process that wait for it: they are in memory."""


def measure_many(
    samples: Iterable[Sample | Measured], names: Sequence[str], total: int, num_workers: int = 0
) -> Iterator[Measured]:
    """Measure samples as they come, a few ahead of what is asked for.

    Args:
        samples: Drawn in this process, which may make them on the way; what is measured
            already, such as one that cannot be read, is handed on.
        names: Of scorers, see :func:`speechlm.evaluation.signal.scorers.choose`.
        total: How many samples there are about.
        num_workers: Processes; 0 for one a core where that is worth it, 1 for this one.

    Raises:
        PartialFailure: A process was killed.
    """
    num_workers = num_workers or min(usable_cores(), 1 + total // WORTH_A_PROCESS)
    if num_workers < 2:
        for sample in samples:
            yield sample if isinstance(sample, Measured) else _on_one_thread(sample, names)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker) as pool:
        waiting: deque[Future[Measured]] = deque()
        try:
            for sample in samples:
                if isinstance(sample, Measured):
                    waiting.append(Future())
                    waiting[-1].set_result(sample)
                else:
                    waiting.append(pool.submit(measure, sample, names))
                if len(waiting) >= AHEAD * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise PartialFailure(
                "a process that measures recordings was killed, perhaps for want of memory; what "
                "was measured is kept: run this again"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _on_one_thread(sample: Sample, names: Sequence[str]) -> Measured:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the worker processes, to the last bit
    try:
        return measure(sample, names)
    finally:
        torch.set_num_threads(threads)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
