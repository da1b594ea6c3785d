"""Full-Duplex-Bench 1.0 and 1.5 from their folders: a folder a sample, ``input.wav`` within.

What a sample asks is told by the file beside its input: ``pause.json``, ``turn_taking.json``,
``interrupt.json``, ``metadata.json`` (1.5), or none of them for a backchannel. A bundle answers
the input, turn by turn (:mod:`speechlm.evaluation.interaction.turn_based`) or, if it is a duplex
one, while it hears it (:mod:`speechlm.dialogue.simulate`); of anything else there is a folder
of the same form with ``output.wav``, and ``output.json`` with its words where somebody wrote them
down.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from speechlm.audio import measure_audio, save_audio
from speechlm.dialogue.settings import SessionSettings
from speechlm.dialogue.simulate import simulate
from speechlm.dialogue.users import RecordedUser
from speechlm.errors import CorpusError, SpeechLMError
from speechlm.evaluation.interaction.full_duplex import (
    MODEL_PAUSE_S,
    USER_PAUSE_S,
    Word,
    find_backchannels,
    join_spans,
    released_backchannels,
    released_jsd,
    released_responses,
    released_spans,
    released_stops,
    response_latency,
    stop_latency,
    takes_turn,
    timing_jsd,
)
from speechlm.evaluation.interaction.turn_based import ENDPOINT_S, converse
from speechlm.evaluation.interaction.turns import Span
from speechlm.evaluation.interaction.voice_activity import SAMPLE_RATE, load_channels, speech_spans
from speechlm.evaluation.interaction.word_times import RECOGNIZER, recognize_words
from speechlm.evaluation.tasks.items import Item, variants
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.results import Result
from speechlm.files import read_json, sha256_of, write_json
from speechlm.layouts.live import is_duplex

Kind = Literal["pause", "turn", "interruption", "overlap", "backchannel"]
ANNOTATIONS: dict[str, Kind] = {
    "interrupt.json": "interruption",
    "turn_taking.json": "turn",
    "pause.json": "pause",
    "metadata.json": "overlap",
}
PEOPLE_NAME = "icc_gt_distribution.json"
"""When people give backchannels, by sample: beside the samples or a folder above them."""
OUTPUT_NAME, WORDS_NAME = "output.wav", "output.json"

Heard = tuple[Tensor, Sequence[Span]]
"""A recording, float32 [T] at 16 kHz, and when there is speech in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One situation."""

    id: str
    subset: str
    """The folder that it lies in with others of its kind."""
    kind: Kind
    input: Path
    event: Span | None = None
    """When the user interrupts or pauses, or ends (``turn``: both times alike); none of a
    backchannel."""
    people: tuple[float, ...] = ()
    """When people would give a backchannel, a share a bin."""
    context: str = ""
    interruption: str = ""
    """What the user says before, and when cutting in."""


def run_full_duplex(job: Job) -> Iterator[Result]:
    """The situations of a folder."""
    yield from run_samples(job, job.given)


def run_samples(job: Job, folder: Path) -> Iterator[Result]:
    """The situations of a folder, which may have been made just now."""
    samples = read_samples(folder)
    answered = job.system.is_bundle
    outputs = job.output / "outputs" / job.name if answered else job.system.recordings
    about = {} if answered else {"outputs_sha256": _outputs_sha256(samples, outputs)}
    sha256 = samples_sha256(samples)
    duplex = answered and is_duplex(job.system.bundle.lm.layout)
    about["endpoint_s"] = "live" if duplex else str(ENDPOINT_S)

    def score(left: Sequence[Sample]) -> Iterator[Item]:
        for number, sample in enumerate(left):
            try:
                user = hear(sample.input)
                if answered:
                    if number == 0 and not duplex:  # a first answer takes longer than others
                        converse(job.system.bundle, *user, job.seed)
                    _answer(job, user, outputs / sample.id)
                item = score_sample(sample, user, outputs / sample.id)
                if answered:
                    write_words(outputs / sample.id / WORDS_NAME, item.note["words"])
                yield item
            except (SpeechLMError, OSError) as error:
                yield Item(id=sample.id, error=str(error))

    items = job.run_items(samples, score, sha256, "samples", **about)
    for subset in dict.fromkeys(sample.subset for sample in samples):
        kinds = {sample.id: sample.kind for sample in samples if sample.subset == subset}
        part = [item for item in items if item.id in kinds]
        good = [item for item in part if not item.error]
        heard = any(item.note["recognized"] for item in good)
        asr = RECOGNIZER if heard else None
        for row in job.rows(part, sha256, asr=asr):
            yield replace(row, subset="/".join(filter(None, (subset, row.subset))))
        if "backchannel" in kinds.values() and "jsd" not in variants(good):
            lacking = f"expected {PEOPLE_NAME} beside the samples, and the samples' names in it"
            blank = job.row(data_sha256=sha256)
            yield replace(blank, subset=subset, variant="jsd", error=lacking)


def read_samples(folder: Path) -> list[Sample]:
    """Every folder with an ``input.wav``, in the order of their names, numbers as numbers.

    Raises:
        CorpusError: There is none, or an annotation is none.
    """
    inputs = sorted(folder.rglob("input.wav"), key=_natural)
    if not inputs:
        raise CorpusError(f"{folder}: expected a folder a sample, input.wav in each")
    return [_read_sample(folder, path) for path in inputs]


def _read_sample(folder: Path, path: Path) -> Sample:
    here = path.parent
    name = here.relative_to(folder).as_posix()
    subset = here.parent.name if "/" in name else folder.resolve().name
    known = Sample(id=name, subset=subset, kind="backchannel", input=path)
    annotation = next((here / name for name in ANNOTATIONS if (here / name).is_file()), None)
    if annotation is None:
        people_file = _people_file(here, folder)
        if people_file is None and "backchannel" not in subset:
            raise CorpusError(
                f"{here}: expected {', '.join(ANNOTATIONS)}, or backchannel in the name of the "
                "folder above"
            )
        people = read_json(people_file).get(here.name, ()) if people_file else ()
        return replace(known, people=tuple(people))
    kind = ANNOTATIONS[annotation.name]
    known = replace(known, kind=kind)
    try:
        told = read_json(annotation)
        if kind == "overlap":
            start, end = told["timestamps"]
            texts = told.get("context_text", ""), told.get("current_turn_text", "")
        else:
            start, end = told[0]["timestamp"]
            texts = told[0].get("context", ""), told[0].get("interrupt", "")
        event = (float(start), float(start if kind == "turn" else end))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CorpusError(f"{annotation}: expected the times of a {kind}, from and to") from error
    return replace(known, event=event, context=texts[0], interruption=texts[1])


def _people_file(here: Path, folder: Path) -> Path | None:
    places = (here.parent, here.parent.parent, folder)
    return next((p / PEOPLE_NAME for p in places if (p / PEOPLE_NAME).is_file()), None)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part or -1) if part.isdigit() else -1, part)
            for part in re.split(r"(\d+)", path.as_posix())]  # fmt: skip


def samples_sha256(samples: Sequence[Sample]) -> str:
    """Of what samples ask, and every byte of what the user says."""
    digest = hashlib.sha256()
    for sample in samples:
        told = {key: value for key, value in asdict(sample).items() if key != "input"}
        digest.update(f"{json.dumps(told, sort_keys=True)} {sha256_of(sample.input)}".encode())
    return digest.hexdigest()


def _outputs_sha256(samples: Sequence[Sample], outputs: Path) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        for name in (OUTPUT_NAME, WORDS_NAME):
            path = outputs / sample.id / name
            digest.update((sha256_of(path) if path.is_file() else "missing").encode())
    return digest.hexdigest()


def hear(path: Path) -> Heard:
    """A recording as one channel at 16 kHz, float32 [T], and when there is speech in it.

    Raises:
        AudioError: It is missing or cannot be used.
    """
    wave = load_channels(path).mean(dim=0)
    return wave, speech_spans(wave)


def _answer(job: Job, user: Heard, folder: Path) -> None:
    """Write ``output.wav``, and when which answer was given, or what happened live."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WORDS_NAME).unlink(missing_ok=True)  # of an earlier answer
    bundle = job.system.bundle
    if is_duplex(bundle.lm.layout):
        settings = SessionSettings(input_rate=SAMPLE_RATE, output_rate=SAMPLE_RATE, seed=job.seed)
        dialogue = simulate(bundle, RecordedUser(user[0]), settings)
        save_audio(folder / OUTPUT_NAME, dialogue.output, SAMPLE_RATE)
        write_json(folder / "events.json", dialogue.events)
        return
    said, replies = converse(bundle, *user, job.seed)
    save_audio(folder / OUTPUT_NAME, said, SAMPLE_RATE)
    write_json(folder / "replies.json", [asdict(reply) for reply in replies])


def write_words(path: Path, words: Sequence[tuple[str, float, float]]) -> None:
    """Words with their times in the form that the published scoring reads."""
    chunks = [{"text": text, "timestamp": [start, end]} for text, start, end in words]
    write_json(path, {"text": " ".join(text for text, _, _ in words), "chunks": chunks})


def _recognize(sample: Sample, wave: Tensor, spans: Sequence[Span]) -> list[Word]:
    """Of an interruption, only what is said after it, as the published transcripts have it."""
    if sample.kind == "interruption" and sample.event is not None:
        end_s = sample.event[1]
        spans = [(max(start, end_s), end) for start, end in spans if end > end_s]
    return recognize_words(wave, spans)


def read_words(path: Path) -> list[Word]:
    """The words of an ``output.json``.

    Raises:
        CorpusError: It is none.
    """
    try:
        chunks = read_json(path)["chunks"]
        return [Word(str(one["text"]), *map(_time, one["timestamp"])) for one in chunks]
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f'{path}: expected {{"text", "chunks": [{{"text", "timestamp": [from, to]}}]}}'
        ) from error


def _time(value: Any) -> float | None:
    return None if value is None else float(value)


def score_sample(sample: Sample, user: Heard, folder: Path) -> Item:
    """What a model did in a situation.

    Args:
        sample: The situation.
        user: Its input, as :func:`hear` gives it.
        folder: With ``output.wav`` in time with the input, and ``output.json`` if there is one;
            nothing is written there.

    Returns:
        ``note`` holds what a judge of the answer asks for: ``context``, ``interruption`` and
        ``reply``.

    Raises:
        AudioError: A recording is missing or cannot be used.
        CorpusError: ``output.json`` is none.
    """
    said, spans = hear(folder / OUTPUT_NAME)
    written = (folder / WORDS_NAME).is_file()
    words = read_words(folder / WORDS_NAME) if written else _recognize(sample, said, spans)
    users = join_spans(user[1], USER_PAUSE_S)
    model = join_spans(spans, MODEL_PAUSE_S)
    figures: dict[str, tuple[float, float]] = {}
    if sample.kind == "backchannel":
        figures = _score_backchannels(sample, folder, spans, words)
    elif sample.kind != "overlap":
        figures = _score_turn(sample, words, users, model)
    if sample.kind in ("interruption", "overlap"):
        figures |= _score_overlap(sample, users, model)
    return Item(
        id=sample.id,
        figures=figures,
        note={
            "recognized": not written,
            "words": [(word.text.strip(), word.start_s, word.end_s) for word in words],
            "speech": spans,
            "context": sample.context,
            "interruption": sample.interruption,
            "reply": " ".join(word.text.strip() for word in words),
        },
    )


def _score_turn(
    sample: Sample, words: Sequence[Word], user: Sequence[Span], model: Sequence[Span]
) -> dict[str, tuple[float, float]]:
    """Whether words are a turn and when it began, against where the user's turn ended."""
    assert sample.event is not None
    end_s = sample.event[1]
    meant = list(words)
    speaks = any(start >= end_s for start, _ in model)
    if sample.kind == "pause":
        # An answer to the whole question is none in its pause.
        end_s = user[-1][1] if user else 0.0
        meant = [word for word in words if word.start_s is not None and word.start_s < end_s]
        speaks = any(start < end_s for start, _ in model)
    elif sample.kind == "interruption":
        # What it goes on with before the user is done answers something else.
        meant = [word for word in words if (word.end_s or word.start_s or 0.0) > end_s]
    figures = {
        "fdb_tor": (100.0 * takes_turn(words), 1.0),
        "tor": (100.0 * takes_turn(meant), 1.0),
        "speaks": (100.0 * speaks, 1.0),
    }
    if sample.kind == "pause":
        return figures
    if takes_turn(words) and words[0].start_s is not None:
        figures["fdb_latency_s"] = _number(max(0.0, words[0].start_s - end_s))
    if takes_turn(meant) and meant[0].start_s is not None:
        figures["latency_s"] = _number(meant[0].start_s - end_s)
    if (waited := response_latency(sample.event, model)) is not None:
        figures["response_latency_s"] = _number(waited)
    return figures


def _score_backchannels(
    sample: Sample, folder: Path, spans: Sequence[Span], words: Sequence[Word]
) -> dict[str, tuple[float, float]]:
    duration_s = measure_audio(folder / OUTPUT_NAME)
    # The published scoring takes samples of any rate for 16 kHz.
    unsampled = load_channels(folder / OUTPUT_NAME, None).mean(dim=0)
    same = len(unsampled) == round(duration_s * SAMPLE_RATE)
    as_heard = spans if same else speech_spans(unsampled)
    rounded = released_spans(as_heard, len(unsampled) / SAMPLE_RATE)
    released, found = released_backchannels(rounded, words), find_backchannels(spans, words)
    figures = {
        "fdb_tor": (100.0 * released.takes_turn, 1.0),
        "tor": (100.0 * found.takes_turn, 1.0),
        "fdb_frequency": _number(len(released.spans) / duration_s),
        "backchannels_per_min": (60.0 * len(found.spans), duration_s),
    }
    if sample.people:
        figures["fdb_jsd"] = _number(released_jsd(released.spans, duration_s, sample.people))
        figures["jsd"] = _number(timing_jsd(found.spans, duration_s, sample.people))
    return figures


def _score_overlap(
    sample: Sample, user: Sequence[Span], model: Sequence[Span]
) -> dict[str, tuple[float, float]]:
    figures: dict[str, tuple[float, float]] = {}
    for name, spans in (
        ("fdb_stop_latency_s", released_stops(user, model)),
        ("fdb_response_latency_s", released_responses(user, model)),
    ):
        if spans:
            figures[name] = sum(end - start for start, end in spans), float(len(spans))
    assert sample.event is not None
    for name, latency in (
        ("stop_latency_s", stop_latency(sample.event, model)),
        ("response_latency_s", response_latency(sample.event, model)),
    ):
        if latency is not None:
            figures[name] = _number(latency)
    return figures


def _number(value: float) -> tuple[float, float]:
    """An item's part of a mean; weighted so that 0 of 1 is not taken for a wrong answer."""
    return value / 2, 0.5
