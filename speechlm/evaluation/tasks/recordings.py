"""How recordings sound, beside their references: resynthesized ones, and what others made.

``resynthesis`` passes each recording of a corpus through tokenizer and vocoder and measures what
comes back against it. ``recordings`` measures a folder that something else made: each recording
against the one of the same name among the references, the corpus that is the benchmark's data.
A ``versa.yaml`` in that corpus chooses what is measured; by default it is all that needs no
network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import soundfile

from speechlm.audio import EXTENSIONS
from speechlm.data.corpus import MANIFEST_NAME, Corpus, Recording, open_corpus, readable
from speechlm.data.human import human_clips
from speechlm.errors import AudioError, CorpusError, SpeechLMError
from speechlm.evaluation.signal.measuring import measure_many
from speechlm.evaluation.signal.scorers import (
    OF_REFERENCE,
    RECOGNIZED,
    SAMPLE_RATE,
    Measured,
    Sample,
    choose,
    recognizer_name,
)
from speechlm.evaluation.signal.versa import (
    CONFIG_NAME,
    RESULTS_NAME,
    read_versa_config,
    versa_line,
)
from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.results import Result
from speechlm.files import sha256_of, write_aside, write_folder_aside
from speechlm.progress import say
from speechlm.resynthesis import Resynthesizer

NUM_SENTENCES = 8
"""Of ``mini-resynthesis``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counterparts:
    """A reference and what was made of it; either may be missing."""

    id: str
    made: Recording | None
    reference: Recording | None


T = TypeVar("T", Recording, Counterparts)


def run_resynthesis(job: Job) -> Iterator[Result]:
    """What tokenizer and vocoder keep of recordings."""
    corpus = open_corpus(job.given)
    resynthesizer = _resynthesizer(job.system)
    rate = max(SAMPLE_RATE, resynthesizer.tokenizer.sample_rate)

    def sample(recording: Recording) -> Sample:
        wave = recording.load(rate)
        made = resynthesizer.resynthesize(wave, rate)
        return Sample(
            wave=made.detach().cpu().numpy(),
            sample_rate=resynthesizer.sample_rate,
            reference=wave.numpy(),
            reference_rate=rate,
            text=recording.text,
        )

    vocoder = resynthesizer.vocoder.fingerprint
    yield from _run(job, list(corpus), sample, corpus, vocoder=vocoder)


def run_mini_resynthesis(job: Job) -> Iterator[Result]:
    """What tokenizer and vocoder keep of sentences of a human voice, which come along."""
    folder = job.made()
    if not folder.is_dir():
        with write_folder_aside(folder) as aside:
            rows = []
            for name, clip in list(human_clips("prompts").items())[:NUM_SENTENCES]:
                shutil.copyfile(clip.path, aside / clip.path.name)
                rows.append({"id": name, "audio": clip.path.name, "text": clip.text})
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (aside / MANIFEST_NAME).write_text(lines, encoding="utf-8")
    yield from run_resynthesis(replace(job, data=folder))


def run_recordings(job: Job) -> Iterator[Result]:
    """How a folder of recordings compares with references of the same names."""
    references, made = open_corpus(job.given), open_corpus(job.system.recordings)
    pairs = match(made, job.system.recordings, references, _folder(job.given))
    yield from _run(job, pairs, sample_of, references, recordings_sha256=corpus_sha256(made))


def match(
    made: Corpus, folder: Path, references: Corpus, reference_folder: Path
) -> list[Counterparts]:
    """Recordings and references of one name: an id, or a path in their folder, endings aside.

    Returns:
        In the order of the references; those that none was made of, and at the end recordings
        without a reference, are there too.

    Raises:
        CorpusError: Two recordings have one name.
    """
    by_name: dict[str, Recording] = {}
    for recording in made:
        for name in _names(recording, folder):
            other = by_name.setdefault(name, recording)
            if other is not recording:
                raise CorpusError(f"{recording.source} and {other.source} are both called {name!r}")
    left = dict.fromkeys(recording.id for recording in made)
    pairs = []
    for reference in references:
        names = _names(reference, reference_folder)
        found = next((by_name[name] for name in names if name in by_name), None)
        if found is not None:
            left.pop(found.id, None)
        pairs.append(Counterparts(id=reference.id, made=found, reference=reference))
    return pairs + [Counterparts(id=name, made=made[name], reference=None) for name in left]


def sample_of(pair: Counterparts) -> Sample:
    """Read a recording and its reference.

    Raises:
        AudioError: One is missing or cannot be used, the recording has several channels, or the
            two have not the same rate.
    """
    if pair.reference is None:
        raise AudioError(f"{pair.id}: no reference has this name")
    if pair.made is None:
        raise AudioError(f"{pair.id}: no recording has this name, as the reference has")
    rate, channels = _form(pair.made)
    reference_rate, _ = _form(pair.reference)
    if channels != 1:
        raise AudioError(f"{pair.made.source}: expected one channel, got {channels}")
    if rate != reference_rate:
        raise AudioError(
            f"{pair.made.source}: expected {reference_rate} Hz, the rate of its reference, "
            f"got {rate} Hz; resample it"
        )
    return Sample(
        wave=pair.made.load(rate).numpy(),
        sample_rate=rate,
        reference=pair.reference.load(rate).numpy(),
        reference_rate=rate,
        text=pair.reference.text,
    )


def corpus_sha256(corpus: Corpus) -> str:
    """Of what recordings are called and say, and of every byte of their files."""
    digest = hashlib.sha256()
    of_files: dict[Path, str] = {}
    for each in corpus:
        about = [each.id, each.text, each.start_s, each.duration_s]
        digest.update(json.dumps(about).encode())
        if each.audio is None:
            with suppress(AudioError):  # it will be an item that failed
                digest.update(each.load(SAMPLE_RATE).numpy().tobytes())
        elif each.audio.is_file():
            if each.audio not in of_files:
                of_files[each.audio] = sha256_of(each.audio)
            digest.update(of_files[each.audio].encode())
    return digest.hexdigest()


def _run(
    job: Job, todo: Sequence[T], sample: Callable[[T], Sample], corpus: Corpus, **about: str
) -> Iterator[Result]:
    config = _folder(job.given) / CONFIG_NAME
    asked = read_versa_config(config) if config.is_file() else None
    names, missing = choose(asked)
    for name, reason in missing.items():
        say(f"{job.name}: {name} is left out: {reason}")
    asr = recognizer_name() if "error_rates" in names else ""
    sha256 = corpus_sha256(corpus)

    def drawn(left: Sequence[T]) -> Iterator[Sample | Measured]:
        for each in left:
            try:
                yield sample(each)
            except (SpeechLMError, OSError) as error:
                yield Measured(error=str(error))

    def score(left: Sequence[T]) -> Iterator[Item]:
        results = measure_many(drawn(left), names, len(left))
        for each, measured in zip(left, results, strict=True):
            note = {**measured.note, "left_out": measured.left_out}
            yield Item(id=each.id, figures=measured.figures, note=note, error=measured.error)

    about = {**about, "asr": asr, "scorers": " ".join(names)}
    items = job.run_items(todo, score, sha256, "recordings", **about)
    _write_versa(job.output / RESULTS_NAME, items, asr)
    for row in job.rows(items, sha256, asr=asr or None):
        heard = row.variant.startswith(RECOGNIZED) or row.error
        yield row if heard else replace(row, asr=None)
    for name, reason in {**missing, **_left_out(job.name, items, names)}.items():
        if asked is not None:
            yield replace(job.row(data_sha256=sha256), variant=name, error=reason)


def _left_out(benchmark: str, items: Sequence[Item], names: Sequence[str]) -> dict[str, str]:
    """Say what could not be measured of some recordings; give what could be of none."""
    none_at_all = {}
    good = [item for item in items if not item.error]
    counts = Counter(name for item in good for name in item.note["left_out"])
    for name, count in counts.items():
        first = next(item for item in good if name in item.note["left_out"])
        reason = f"the first {first.id}: {first.note['left_out'][name]}"
        say(f"{benchmark}: {name} is left out for {count} of {len(good)}, {reason}")
        if count == len(good) and name in names:
            none_at_all[name] = f"of no recording, {reason}"
    return none_at_all


def _write_versa(path: Path, items: Sequence[Item], asr: str) -> None:
    """Scores as VERSA writes them, of the recordings that could be measured."""
    recognizer = asr.partition("-")[0]
    with write_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        for item in items:
            if item.error:
                continue
            scores: dict[str, float | str] = {
                name: total / count
                for name, (total, count) in item.figures.items()
                if not name.endswith(OF_REFERENCE) and not name.startswith(RECOGNIZED)
            }
            against = "wer" if "wer" in item.figures else "wer_heard"
            if against in item.figures:
                kinds = ("delete", "insert", "replace", "equal")
                for kind, count in zip(kinds, item.note["edits"][against], strict=True):
                    scores[f"{recognizer}_wer_{kind}"] = count
                scores[f"{recognizer}_hyp_text"] = item.note["heard"]
                scores["ref_text"] = item.note.get("text", item.note["heard_reference"])
            file.write(versa_line(item.id, scores) + "\n")


def _resynthesizer(system: System) -> Resynthesizer:
    if system.is_bundle:
        return system.bundle
    tokenizer = system.tokenizer  # refuses what has none
    return Resynthesizer(tokenizer, Resynthesizer.open(system.folder).vocoder)


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _names(recording: Recording, folder: Path) -> list[str]:
    names = [recording.id]
    if recording.audio is not None and recording.audio.is_relative_to(folder):
        names.append(readable(recording.audio.relative_to(folder)))
    paths = (PurePosixPath(name) for name in names)
    bare = [str(path.with_suffix("")) for path in paths if path.suffix.lower() in EXTENSIONS]
    return list(dict.fromkeys([*names, *bare]))


def _form(recording: Recording) -> tuple[int, int]:
    """Rate and channels of the file."""
    if recording.cut is not None:
        return int(recording.cut.sampling_rate), 1
    assert recording.audio is not None
    try:
        found = soundfile.info(os.fsencode(recording.audio))
    except (soundfile.LibsndfileError, RuntimeError):
        recording.load(SAMPLE_RATE)  # says what is wrong with it
        raise
    return int(found.samplerate), int(found.channels)
