"""STSP: does what follows keep the sentiment of what was said.

Of speech or text in a happy, sad, angry or plain mood something is generated, and a classifier
says the sentiment of that: positive, negative or neutral. The figure is how often it is that of
the prompt, in percent.

Two kinds of data:

- predictions, for any of the four directions: ``ref.jsonl`` with ``id`` and ``sentiment`` (or
  ``emotion``), and ``pred*.jsonl`` with ``id`` and ``pred``, one direction each;
- the published folder: ``manifest/**/NAME.test.jsonl`` with ``wav_path`` below ``data``, and
  ``model/speech_classifier``: a bundle goes on from each recording, speech to speech.

Source:
    Nguyen et al. 2024 (SpiRit-LM), arXiv:2402.05755.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechlm.audio import load_audio, resample
from speechlm.config import SamplingConfig
from speechlm.errors import CheckpointError, CorpusError, SpeechLMError
from speechlm.evaluation.tasks.items import RIGHT, WRONG, Item
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.results import Result
from speechlm.files import sha256_of

SENTIMENTS: Mapping[str, str] = {
    "positive": "positive",
    "happy": "positive",
    "amused": "positive",
    "negative": "negative",
    "angry": "negative",
    "sad": "negative",
    "neutral": "neutral",
    "default": "neutral",
}
"""Of a mood, as the paper groups them."""
SAMPLING = SamplingConfig(temperature=0.8, top_p=0.95)
"""As the paper draws; what follows ends where the model ends it."""
SPEECH_CLASSIFIER = Path("model") / "speech_classifier"


def sentiment(label: str) -> str:
    """The sentiment of a mood or of a sentiment.

    Raises:
        CorpusError: It is neither.
    """
    found = SENTIMENTS.get(label.lower())
    if found is None:
        raise CorpusError(f"expected a mood of {', '.join(SENTIMENTS)}, got {label!r}")
    return found


class MoodClassifier:
    """Any audio classifier of ``transformers`` whose labels are moods.

    Raises:
        CheckpointError: There is none, or it knows no mood.
    """

    def __init__(self, source: str) -> None:
        import transformers

        library: Any = transformers
        try:
            self._extract = library.AutoFeatureExtractor.from_pretrained(source)
            model = library.AutoModelForAudioClassification.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{source}: expected an audio classifier of transformers ({error})"
            ) from error
        self._model = model.eval()
        self.name = source
        names = self._model.config.id2label
        self._moods = {
            index: SENTIMENTS[str(names[index]).lower()]
            for index in range(len(names))
            if str(names[index]).lower() in SENTIMENTS
        }
        if not self._moods:
            raise CheckpointError(f"{source}: no label is a mood of {', '.join(SENTIMENTS)}")

    def classify(self, wave: Tensor, sample_rate: int) -> str:
        """The sentiment of the most probable label that is a mood; of float32 [T]."""
        rate = int(self._extract.sampling_rate)
        given = self._extract(
            resample(wave, sample_rate, rate).numpy(), sampling_rate=rate, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = self._model(**given).logits[0]
        return self._moods[max(self._moods, key=lambda index: float(logits[index]))]


def run_stsp(job: Job) -> Iterator[Result]:
    """Whether the sentiment of a prompt is kept."""
    folder = job.given
    if (folder / "ref.jsonl").is_file():
        yield from _graded(job, folder)
        return
    manifests = sorted(folder.glob("manifest/**/*.test.jsonl"))
    if not manifests:
        raise CorpusError(
            f"{folder}: expected ref.jsonl and pred*.jsonl, or STSP's manifest/**/*.test.jsonl"
        )
    rows = [(path.name.partition(".")[0], row) for path in manifests for row in read_rows(path)]
    paths = [folder / "data" / str(row["wav_path"]) for _, row in rows]
    digest = _digest([*manifests, *(path for path in paths if path.is_file())])
    bundle = job.system.bundle
    classifier = MoodClassifier(str(folder / SPEECH_CLASSIFIER))
    rate = bundle.tokenizer.sample_rate

    def score(left: Sequence[tuple[Path, tuple[str, dict[str, Any]]]]) -> Iterator[Item]:
        for path, (name, row) in left:
            item_id = f"{name}/{row['id']}"
            try:
                wanted = wanted_sentiment(row)
                wave = bundle.continue_speech(
                    load_audio(path, rate), rate, sampling=SAMPLING, seed=job.seed
                )
                said = classifier.classify(wave, bundle.sample_rate) if len(wave) else "silence"
            except (SpeechLMError, OSError) as error:
                yield Item(id=item_id, error=str(error))
                continue
            yield _item(item_id, "speech_speech", wanted, said, (f"set={name}",))

    items = job.run_items(
        list(zip(paths, rows, strict=True)), score, digest, "prompts", judge=classifier.name
    )
    yield from job.rows(items, digest, judge=classifier.name)


def _graded(job: Job, folder: Path) -> Iterator[Result]:
    """Predictions that something else made."""
    references = {str(row["id"]): row for row in read_rows(folder / "ref.jsonl")}
    paths = sorted(folder.glob("pred*.jsonl"))
    if not paths:
        raise CorpusError(f"{folder}: expected pred*.jsonl beside ref.jsonl, lines of id and pred")
    todo = []
    for path in paths:
        said = {str(row["id"]): row for row in read_rows(path)}
        unknown = sorted(said.keys() - references.keys())
        if unknown:
            raise CorpusError(f"{path}: {unknown[0]} is not in ref.jsonl")
        direction = path.stem.removeprefix("pred").strip("._-") or "predictions"
        todo += [(direction, row, said.get(name)) for name, row in references.items()]

    def score(
        left: Sequence[tuple[str, dict[str, Any], dict[str, Any] | None]],
    ) -> Iterator[Item]:
        for direction, row, found in left:
            item_id = str(row["id"])
            try:
                if found is None or "pred" not in found:
                    raise CorpusError(f"no prediction of {direction}")
                said = sentiment(str(found["pred"]))
                yield _item(item_id, direction, wanted_sentiment(row), said)
            except CorpusError as error:
                yield Item(id=item_id, error=str(error))

    digest = _digest([folder / "ref.jsonl", *paths])
    yield from job.rows(job.run_items(todo, score, digest, "predictions"), digest)


def wanted_sentiment(row: Mapping[str, Any]) -> str:
    """Of a prompt, by its ``sentiment`` or else its ``emotion``.

    Raises:
        CorpusError: It has neither.
    """
    return sentiment(str(row.get("sentiment") or row.get("emotion")))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines.

    Raises:
        CorpusError: One has no ``id``, or an id comes twice.
    """
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            name = str(row["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{path}:{number}: expected an object with an id") from error
        if name in seen:
            raise CorpusError(f"{path}:{number}: the id {name} comes twice")
        seen.add(name)
        rows.append(row)
    return rows


def _item(
    item_id: str, direction: str, wanted: str, said: str, parts: tuple[str, ...] = ()
) -> Item:
    return Item(
        id=item_id,
        figures={direction: RIGHT if said == wanted else WRONG},
        subsets=(f"sentiment={wanted}", *parts),
        note={"sentiment": wanted, "classified": said},
    )


def _digest(paths: Sequence[Path]) -> str:
    return hashlib.sha256("".join(sha256_of(path) for path in paths).encode()).hexdigest()
