"""What a benchmark is given: the system that is measured, the data, the seed, where scores go.

A *system* is a bundle, a tokenizer's folder, plain features of speech, or a folder of recordings
that something else made. A benchmark asks for what it needs, and a system that has not got it is
refused in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from speechlm import doctor
from speechlm.bundle import BUNDLE_NAME, SpeechLM
from speechlm.errors import InputError
from speechlm.evaluation.hub_models import HubTextModel, WhisperRecognizer
from speechlm.evaluation.recognizer import (
    Recognizer,
    SpeechRecognizer,
    TrigramModel,
    WordModel,
)
from speechlm.evaluation.tasks.items import Item, figure, subsets, variants
from speechlm.evaluation.tasks.journal import SCORES_FOLDER, Journal
from speechlm.evaluation.tasks.results import Result, Subject
from speechlm.parts import CONFIG_NAME
from speechlm.plugins import load_tokenizer
from speechlm.progress import progress
from speechlm.protocols import AudioTokenizer

FEATURES = ("mfcc", "logmel")
"""Plain features of speech: the baseline of what units tell."""

T = TypeVar("T")


class System:
    """What is measured; its parts are loaded when they are asked for."""

    def __init__(self, source: str, bundle: SpeechLM | None = None) -> None:
        """Find out what it is.

        Args:
            source: Folder of a bundle, of a tokenizer or of recordings, a bundle's hub id, or
                one of :data:`FEATURES`.
            bundle: That bundle, where it has been loaded.
        """
        self.source = source
        if bundle is not None:
            self.bundle = bundle
        self.folder = Path(source)
        self.is_bundle = (self.folder / BUNDLE_NAME).is_file()
        self.is_tokenizer = (self.folder / CONFIG_NAME).is_file()
        if not (self.is_tokenizer or self.is_features or self.folder.is_dir()):
            self.is_bundle = True  # missing, or the hub's: opening it says which

    @property
    def is_features(self) -> bool:
        return self.source in FEATURES

    @cached_property
    def bundle(self) -> SpeechLM:
        """The whole chain.

        Raises:
            InputError: The system is something else.
            CheckpointError: The bundle cannot be read.
        """
        if not self.is_bundle:
            raise InputError(f"expected a bundle, got {self._what()}")
        return SpeechLM.from_pretrained(self.source)

    @cached_property
    def tokenizer(self) -> AudioTokenizer:
        """The tokenizer, a bundle's own or alone.

        Raises:
            InputError: The system has none.
            CheckpointError: It cannot be read.
        """
        if self.is_tokenizer:
            return load_tokenizer(self.folder)
        if not self.is_bundle:
            raise InputError(f"expected a bundle or a tokenizer, got {self._what()}")
        return self.bundle.tokenizer

    @property
    def recordings(self) -> Path:
        """A folder of recordings that something made.

        Raises:
            InputError: The system is something else.
        """
        if self.is_bundle or self.is_tokenizer or self.is_features:
            raise InputError(f"expected a folder of recordings, got {self._what()}")
        return self.folder

    @cached_property
    def subject(self) -> Subject:
        """How every row of its results names it."""
        versions = doctor.versions()
        if self.is_bundle:
            bundle = self.bundle
            return Subject(
                model=bundle.lm.fingerprint,
                tokenizer=bundle.tokenizer.fingerprint,
                rate_hz=bundle.tokenizer.frame_rate,
                dedup=bool(bundle.lm.layout.to_dict()["options"].get("collapse")),
                versions=versions,
            )
        if self.is_tokenizer:
            tokenizer = self.tokenizer
            name = tokenizer.fingerprint
            return Subject(
                model=name, tokenizer=name, rate_hz=tokenizer.frame_rate, versions=versions
            )
        return Subject(model=self.source, versions=versions)

    def _what(self) -> str:
        kinds = {"a bundle": self.is_bundle, "a tokenizer": self.is_tokenizer}
        kinds["plain features"] = self.is_features
        found = next((kind for kind, it_is in kinds.items() if it_is), "a folder of recordings")
        return f"{self.source}, {found}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One benchmark to run on a system."""

    name: str
    """As rows name it."""
    system: System
    data: Path | None
    """Where the benchmark's data lies; None for one that is made on the spot."""
    output: Path
    """The folder of the results."""
    seed: int
    asr: str | None = None
    """Folder or hub id of a recognizer of transformers; None for the one that comes along."""
    text_lm: str | None = None
    """The same of a causal LM of text."""

    @property
    def given(self) -> Path:
        """The data of a benchmark that has some.

        Raises:
            InputError: It was not named, or is missing.
        """
        if self.data is None:
            raise InputError(f"expected --suite {self.name}=FOLDER, the folder of its data")
        if not self.data.exists():
            raise InputError(f"{self.data} is missing: expected the data of {self.name}")
        return self.data

    def made(self) -> Path:
        """A folder for data that is made on the spot; not made yet."""
        return self.output / "data" / self.name

    def recognizer(self) -> SpeechRecognizer:
        """What writes speech down.

        Raises:
            PluginError: Its package is not installed.
            CheckpointError: It is not there, or of another kind.
        """
        return Recognizer() if self.asr is None else WhisperRecognizer(self.asr)

    def word_model(self) -> WordModel:
        """What says how probable a text is; raises as :meth:`recognizer` does."""
        return TrigramModel() if self.text_lm is None else HubTextModel(self.text_lm)

    def run_items(
        self,
        todo: Sequence[T],
        score: Callable[[Sequence[T]], Iterator[Item]],
        data_sha256: str,
        unit: str = "items",
        **about: str,
    ) -> list[Item]:
        """Score what is to be done, in order; each item is kept on disk as it comes.

        Args:
            todo: All of it; what an earlier run has scored of the same is not scored again.
            score: Gives one item for each of those that it is handed, in order. An item that
                cannot be scored has an ``error``.
            data_sha256: Of everything that is measured.
            unit: What progress counts.
            about: Whatever else decides the scores, such as the recognizer.
        """
        subject = self.system.subject
        about = {
            **about,
            "model": subject.model,
            "tokenizer": subject.tokenizer,
            "data_sha256": data_sha256,
            "seed": str(self.seed),
        }
        journal = Journal(self.output / SCORES_FOLDER / f"{self.name}.jsonl", about)
        with progress(self.name, len(todo), unit) as advance:
            advance(len(journal.items))
            left = todo[len(journal.items) :]
            for _ in journal.extend(item.to_dict() for item in score(left)):
                advance()
        return [Item.from_dict(row) for row in journal.items]

    def rows(
        self,
        items: Sequence[Item],
        data_sha256: str,
        *,
        asr: str | None = None,
        judge: str | None = None,
    ) -> Iterator[Result]:
        """The figures of each subset and variant; a row beside them counts items that failed."""
        blank = self.row(data_sha256=data_sha256, asr=asr, judge=judge)
        good = [item for item in items if not item.error]
        for subset, part in subsets(good).items():
            for variant in variants(part):
                found = figure(part, variant, self.seed)
                if found is not None:
                    yield replace(
                        blank,
                        variant=variant,
                        subset=subset,
                        value=found.value,
                        ci95=found.ci95,
                        n=found.n,
                    )
        failed = [item for item in items if item.error]
        if failed:
            first = failed[0]
            yield replace(
                blank,
                subset="failed",
                n=len(failed),
                error=f"{len(failed)} of {len(items)}, the first {first.id}: {first.error}",
            )

    def row(self, *, data_sha256: str, asr: str | None = None, judge: str | None = None) -> Result:
        """A row about this system, to be filled in."""
        return Result(
            metric=self.name,
            variant="",
            seed=self.seed,
            data_sha256=data_sha256,
            asr=asr,
            judge=judge,
            subject=self.system.subject,
        )
