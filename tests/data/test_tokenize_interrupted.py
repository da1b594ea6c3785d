"""Killed, short of memory or disk: what is finished stays, and a rerun ends with the same store."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlm.data.store import UnitStore
from speechlm.data.tokenize import tokenize_corpus

TOKENIZE = """
import os, resource, signal, subprocess, sys
from pathlib import Path

import pyarrow.parquet as pq
from speechlm.data.tokenize import tokenize_corpus
from speechlm.errors import SpeechLMError

def tokenize(num_workers=1, **settings):
    corpus, tokenizer, store = map(Path, sys.argv[1:])
    tokenize_corpus(
        corpus_path=corpus, tokenizer_path=tokenizer, store_path=store, shard_size=4,
        num_workers=num_workers, **settings,
    )

def report(**settings):
    try:
        tokenize(**settings)
        print("finished")
    except SpeechLMError as error:
        print(type(error).__name__, error)
"""

KILL_WHILE_THE_THIRD_SHARD_IS_WRITTEN = """
write = pq.write_table
written = []

def write_and_die(table, path, **settings):
    write(table, path, **settings)
    written.append(path)
    if len(written) == 3:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

pq.write_table = write_and_die
tokenize()
"""

IN_TWO_PROCESSES = """
if __name__ == "__main__":
    report(num_workers=2)
"""

WITH_FILES_OF_AT_MOST_4_KB = """
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
report()
"""

ON_A_SMALL_DISK_THAT_GROWS = """
store = Path(sys.argv[3])
store.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", store], check=True)
report()
print(len(list(store.glob("units-*"))), len(list(store.glob(".aside*"))))
subprocess.run(["mount", "-o", "remount,size=10m", store], check=True)
report()
subprocess.run(["cp", "-r", store, f"{store}-copy"], check=True)
"""

IN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(20):
        samples = random.normal(0, 0.1, 80_000 if number == 6 else 8_000).astype(np.float32)
        soundfile.write(folder / f"{number:02}.wav", samples, 16_000)
    return folder


@pytest.fixture
def unbroken(corpus: Path, tokenizer_folder: Path) -> dict[str, bytes]:
    """The files of a run that nothing happened to."""
    store = corpus.with_name("unbroken")
    finish(corpus, tokenizer_folder, store)
    return contents(store)


def finish(corpus: Path, tokenizer: Path, store: Path) -> tuple[int, int]:
    summary = tokenize_corpus(
        corpus_path=corpus,
        tokenizer_path=tokenizer,
        store_path=store,
        shard_size=4,
        num_workers=1,
    )
    return summary.done, summary.reused


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


def start(script: str, *paths: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    code = paths[2].with_name("run.py")  # a file: spawned processes read it again
    code.write_text(TOKENIZE + script)
    return subprocess.Popen(
        [*prefix, sys.executable, code, *paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(process: int) -> list[int]:
    """The processes that tokenize for ``process``."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(each) for each in found if b"spawn_main" in command(int(each))]


def command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def wait_for_children(process: subprocess.Popen[str]) -> list[int]:
    while len(found := children(process.pid)) < 1:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return found


def test_killed_and_rerun_gives_the_store_of_the_run_that_was_not(
    corpus: Path, tokenizer_folder: Path, unbroken: dict[str, bytes]
) -> None:
    store = corpus.with_name("store")
    killed = start(KILL_WHILE_THE_THIRD_SHARD_IS_WRITTEN, corpus, tokenizer_folder, store)
    _, err = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, err
    left = contents(store)
    assert len(left) == 4  # two shards, the manifest, and half of a third aside
    for name, content in left.items():
        assert name[0] in "_." or content == unbroken[name]

    assert finish(corpus, tokenizer_folder, store) == (12, 8)
    assert contents(store) == unbroken
    assert len(UnitStore.open(store)) == 20


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_killed_worker_process_ends_the_run_with_one_line(
    corpus: Path, tokenizer_folder: Path, unbroken: dict[str, bytes]
) -> None:
    store = corpus.with_name("store")
    run = start(IN_TWO_PROCESSES, corpus, tokenizer_folder, store)
    os.kill(wait_for_children(run)[0], signal.SIGKILL)
    out, _ = run.communicate(timeout=120)
    assert out == (
        "PartialFailure a tokenizing process was killed, perhaps for want of memory; whole shards "
        "are kept: run this again, with fewer than 2 processes if memory is short\n"
    )
    finish(corpus, tokenizer_folder, store)
    assert contents(store) == unbroken


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_killed_run_leaves_no_process_behind(corpus: Path, tokenizer_folder: Path) -> None:
    run = start(IN_TWO_PROCESSES, corpus, tokenizer_folder, corpus.with_name("store"))
    workers = wait_for_children(run)
    run.kill()
    run.communicate()
    deadline = time.monotonic() + 60
    while any(b"spawn_main" in command(each) for each in workers):
        assert time.monotonic() < deadline, "an orphan goes on"
        time.sleep(0.05)


def test_a_file_that_cannot_grow_ends_the_run_with_one_line(
    corpus: Path, tokenizer_folder: Path, unbroken: dict[str, bytes]
) -> None:
    store = corpus.with_name("store")
    largest = max(len(content) for content in unbroken.values())
    limit = WITH_FILES_OF_AT_MOST_4_KB.replace("4096", str(largest - 1))
    out, err = start(limit, corpus, tokenizer_folder, store).communicate()
    assert out == (
        f"PartialFailure {store}: the disk is full (File too large); whole shards are kept: "
        "free some space and run this again\n"
    ), err
    left = contents(store)
    assert 1 < len(left) < len(unbroken)
    assert all(content == unbroken[name] for name, content in left.items() if name[0] != "_")
    finish(corpus, tokenizer_folder, store)
    assert contents(store) == unbroken


def test_a_full_disk_keeps_what_is_finished_and_a_rerun_finishes(
    corpus: Path, tokenizer_folder: Path, unbroken: dict[str, bytes]
) -> None:
    mount = [*IN_NAMESPACE, "mount", "-t", "tmpfs", "none", str(corpus.parent)]
    if not shutil.which("unshare") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here; see the test of files that cannot grow")
    store = corpus.with_name("store")
    run = start(
        ON_A_SMALL_DISK_THAT_GROWS, corpus, tokenizer_folder, store, prefix=tuple(IN_NAMESPACE)
    )
    out, err = run.communicate()
    full, files, finished = out.splitlines() or [err]
    assert full == (
        f"PartialFailure {store}: the disk is full (No space left on device); whole shards are "
        "kept: free some space and run this again"
    )
    shards, asides = map(int, files.split())
    assert 0 < shards < len(unbroken) - 1
    assert asides == 0
    assert finished == "finished"
    assert contents(store.with_name("store-copy")) == unbroken
