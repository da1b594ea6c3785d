"""Tokenizing in this process or in many; a killed one is noticed, none outlives its parent."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TypeVar

import torch

from speechlm.data.corpus import Recording
from speechlm.data.encoding import Encoded, encode_recordings
from speechlm.errors import PartialFailure
from speechlm.plugins import load_tokenizer
from speechlm.protocols import AudioTokenizer

K = TypeVar("K")

WORTH_A_PROCESS = 1000
"""Recordings for which starting a process, seconds of importing, is worth it."""


def encode_chunks(
    chunks: Sequence[tuple[K, Sequence[Recording]]],
    tokenizer: AudioTokenizer,
    tokenizer_path: Path,
    num_workers: int,
) -> Generator[tuple[K, list[Encoded]], None, None]:
    """Tokenize chunks of recordings and give each one's key and outcomes, as they are done.

    Args:
        chunks: What to do, each under a key of the caller's.
        tokenizer: Used in this process.
        tokenizer_path: Where other processes load the same tokenizer from.
        num_workers: Processes; 0 for one a core where that is worth it, 1 for this one.

    Raises:
        PartialFailure: A process was killed.
    """
    if num_workers == 0:
        num_recordings = sum(len(recordings) for _, recordings in chunks)
        num_workers = min(len(os.sched_getaffinity(0)), num_recordings // WORTH_A_PROCESS)
    num_workers = min(num_workers, len(chunks))
    if num_workers <= 1:
        with one_thread():  # as in the worker processes, to the last bit
            for key, recordings in chunks:
                yield key, encode_recordings(tokenizer, recordings)
        return
    with _workers(num_workers, tokenizer_path) as pools:
        waiting: dict[Future[list[Encoded]], tuple[K, ProcessPoolExecutor]] = {}
        for key, recordings in chunks:
            pool = _least_busy(pools, [busy for _, busy in waiting.values()])
            waiting[pool.submit(_encode_in_worker, recordings)] = (key, pool)
            # A bounded queue: recordings are pickled when submitted.
            while len(waiting) >= 3 * num_workers:
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: a recording of seconds is too little work to share out, and
    threads that wait for each other cost many times what they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _least_busy(
    pools: Sequence[ProcessPoolExecutor], busy: Sequence[ProcessPoolExecutor]
) -> ProcessPoolExecutor:
    return min(pools, key=lambda pool: sum(each is pool for each in busy))


def _finished(
    waiting: dict[Future[list[Encoded]], tuple[K, ProcessPoolExecutor]],
) -> Iterator[tuple[K, list[Encoded]]]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future)[0], future.result()


@contextmanager
def _workers(num_workers: int, tokenizer_path: Path) -> Iterator[list[ProcessPoolExecutor]]:
    # Not multiprocessing.Pool: it waits for ever for a process that was killed. So does one
    # executor of several, now and then, when a process is killed while another is started
    # (CPython 3.11.7: 5 of 60 tries); an executor of one process never starts another.
    pools = [
        ProcessPoolExecutor(
            1, get_context("spawn"), initializer=_start_worker, initargs=(tokenizer_path,)
        )
        for _ in range(num_workers)
    ]
    try:
        yield pools
    except BrokenProcessPool as error:
        raise PartialFailure(
            "a tokenizing process was killed, perhaps for want of memory; whole shards are kept: "
            f"run this again, with fewer than {num_workers} processes if memory is short"
        ) from error
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in pools:
            pool.shutdown(wait=True)


_worker_tokenizer: AudioTokenizer


def _start_worker(tokenizer_path: Path) -> None:
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker_tokenizer = load_tokenizer(tokenizer_path)


def leave_with_parent() -> None:
    """A killed parent cannot say goodbye, and its processes would wait for ever."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _encode_in_worker(recordings: Sequence[Recording]) -> list[Encoded]:
    return encode_recordings(_worker_tokenizer, recordings)
