"""Training of a tokenizer or vocoder as a fairseq2 recipe, beside the unit LM's.

One optimizer and one backward also train adversarially: a part's loss is the sum of its
generator's, through discriminators held constant, and its discriminators', on detached sound.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, cast, final

import fairseq2.recipe  # noqa: F401 (its modules import each other in a circle: this is the way in)
import torch
from fairseq2.composition import register_model_family
from fairseq2.datasets import DataReader
from fairseq2.device import SupportsDeviceTransfer
from fairseq2.evaluator import EvalUnit
from fairseq2.metrics import MetricBag, Sum
from fairseq2.metrics.recorders import MetricRecorder
from fairseq2.recipe import Recipe, RecipeContext
from fairseq2.recipe.config import AdamWConfig, AdamWGroupConfig, OptimizerSection
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.task import Task
from fairseq2.trainer import Trainer, TrainUnit
from torch import Tensor
from torch.nn import Module
from torcheval.metrics import Metric

from speechlm.config import RunConfig, TrainConfig
from speechlm.protocols import PartTraining, SegmentBatch
from speechlm.training.recipe import ARCHITECTURE, RecipeSettings, recipe_settings
from speechlm.training.recorder import TERM, PartWording, RunRecorder
from speechlm.training.segments import SegmentSet

FAMILY = "speechlm-part"
AHEAD = 3
"""Batches that are read while one is trained on."""
TERMS = TERM.rstrip("/")


@dataclass(frozen=True)
class _NoShape:
    """fairseq2 wants a configuration for every architecture; a part has been built already."""


def part_settings(config: RunConfig, training: PartTraining, dtype: torch.dtype) -> RecipeSettings:
    """Say a run that trains a tokenizer or vocoder in fairseq2's words."""
    train: TrainConfig = config.train
    optimizer = OptimizerSection(
        config=AdamWConfig(
            lr=train.learning_rate,
            betas=train.betas,
            weight_decay=train.weight_decay,
            impl="fused",
            groups=[
                AdamWGroupConfig(params=pattern, lr=train.learning_rate * factor)
                for pattern, factor in training.learning_rates.items()
            ],
        )
    )
    return recipe_settings(config, dtype, FAMILY, optimizer)


@final
class PartRecipe(Recipe):
    """Trains what ``training`` holds on pieces of recordings."""

    def __init__(
        self,
        config: RunConfig,
        training: PartTraining,
        *,
        train: SegmentSet,
        valid: SegmentSet,
        first_step: int,
    ) -> None:
        self.trainer: Trainer | None = None
        """The trainer, once there is one."""
        self._config = config
        self._training = training
        self._train = train
        self._valid = valid
        self._first_step = first_step

    @property
    def config_kls(self) -> type[object]:
        return RecipeSettings

    def register(self, container: DependencyContainer) -> None:
        # fairseq2 has just sent the whole process's log to the terminal; what concerns the
        # person there, the recorder says, and failures are raised.
        logging.getLogger().handlers[:] = [logging.NullHandler()]
        module = cast(Module, self._training)
        register_model_family(
            container,
            FAMILY,
            kls=type(module),
            config_kls=_NoShape,
            factory=lambda _: module,
            # It reads files while it is built, so every process builds it, from one seed.
            supports_meta=False,
        )
        container.register_instance(_NoShape, _NoShape(), key=ARCHITECTURE)

        def create_recorder(resolver: DependencyResolver) -> MetricRecorder:
            return RunRecorder(
                self._config.train_path,
                PartWording(),
                max_steps=self._config.train.max_steps,
                report_every=self._config.train.report_every,
                first_step=self._first_step,
            )

        container.collection.register(MetricRecorder, create_recorder)  # type: ignore[type-abstract]

    def create_task(self, context: RecipeContext) -> Task:
        model = context.get_data_parallel_model()
        gang = context.gangs.dp
        rate = self._training.sample_rate
        batches = self._valid.valid_batches() if len(self._valid) else []
        measured = len(batches) > 0
        self.trainer = context.create_trainer(
            PartTrainUnit(model, rate, shared=gang.size > 1),
            SegmentReader(
                self._train,
                self._config.train.gradient_accumulation,
                rank=gang.rank,
                size=gang.size,
            ),
            [PartValidUnit(model, self._training)] if measured else None,
            # Each process measures all of them: they are few.
            [ValidSegmentReader(batches)] if measured else None,
        )
        return self.trainer


class LoadedBatch(SupportsDeviceTransfer):
    """A batch as fairseq2 moves it."""

    def __init__(self, segments: SegmentBatch) -> None:
        self.segments = segments

    def to(self, device: torch.device, *, non_blocking: bool = False) -> None:
        self.segments = self.segments.to(device)


@final
class PartTrainUnit(TrainUnit[LoadedBatch]):
    """What a training step does with a batch."""

    def __init__(self, model: Module, sample_rate: int, *, shared: bool) -> None:
        self._model = model
        self._sample_rate = sample_rate
        self._shared = shared

    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        metric_bag.add(TERMS, Terms())
        metric_bag.add("amount", Sum())

    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        _spread(values)

    def process_batch(self, batch: LoadedBatch, metric_bag: MetricBag) -> tuple[Tensor, int]:
        segments = batch.segments
        loss, terms = self._model(segments)
        if self._shared:
            # Data parallelism waits for every parameter's gradient, and what is not yet in
            # use, discriminators before their time, gives none.
            loss = loss + 0.0 * sum(p.sum() for p in self._model.parameters() if p.requires_grad)
        size = len(segments.waves)
        metric_bag.get(TERMS, Terms).update({"loss": loss, **terms}, size)
        metric_bag.get("amount", Sum).update(float(segments.lengths.sum()) / self._sample_rate)
        return loss * size, size


@final
class PartValidUnit(EvalUnit[LoadedBatch]):
    """What validation does with a batch."""

    def __init__(self, model: Module, training: PartTraining) -> None:
        self._model = model  # fairseq2 puts it into evaluation mode
        self._training = training

    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        metric_bag.add(TERMS, Terms())

    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        _spread(values)

    def process_batch(self, batch: LoadedBatch, metric_bag: MetricBag) -> None:
        module = cast(Module, self._training)
        was_training = module.training
        module.eval()
        with torch.no_grad():
            terms = self._training.measure(batch.segments)
        module.train(was_training)
        metric_bag.get(TERMS, Terms).update(terms, len(batch.segments.waves))


def _spread(values: MutableMapping[str, object]) -> None:
    """Put every term beside fairseq2's own metrics."""
    terms = cast(dict[str, Tensor], values.pop(TERMS))
    values.update({f"{TERM}{name}": value for name, value in terms.items()})


class Terms(Metric[dict[str, Tensor]]):
    """Means of the terms of a loss, whichever a part reports."""

    def __init__(self, *, device: torch.device | None = None) -> None:
        super().__init__(device=device)
        self._add_state("sums", {})
        self._add_state("weights", {})
        self.sums: dict[str, Tensor]
        self.weights: dict[str, Tensor]

    @torch.inference_mode()
    def update(self, terms: dict[str, Tensor], weight: float) -> Self:
        for name, value in terms.items():
            zero = torch.zeros((), device=self.device)
            self.sums[name] = self.sums.get(name, zero) + value.detach().float() * weight
            self.weights[name] = self.weights.get(name, zero) + weight
        return self

    @torch.inference_mode()
    def compute(self) -> dict[str, Tensor]:
        return {name: total / self.weights[name] for name, total in self.sums.items()}

    @torch.inference_mode()
    def merge_state(self, metrics: Iterable[Self]) -> Self:
        for other in metrics:
            for mine, theirs in ((self.sums, other.sums), (self.weights, other.weights)):
                for name, value in theirs.items():
                    mine[name] = mine.get(name, torch.zeros_like(value)) + value.to(self.device)
        return self


@final
class SegmentReader(DataReader[LoadedBatch]):
    """Batch after batch without an end, the next ones read while one is trained on.

    Of all batches of a run each process takes every ``size``-th.
    """

    def __init__(self, segments: SegmentSet, accumulation: int, *, rank: int, size: int) -> None:
        self._segments = segments
        self._accumulation = accumulation
        self._rank = rank
        self._size = size
        self._given = 0
        self._pool = ThreadPoolExecutor(1)
        self._coming: deque[Future[SegmentBatch]] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[LoadedBatch]:
        return [self._read() for _ in range(self._accumulation)]

    def _read(self) -> LoadedBatch:
        while len(self._coming) < AHEAD:
            number = (self._given + len(self._coming)) * self._size + self._rank
            self._coming.append(self._pool.submit(self._segments.batch, number))
        batch = self._coming.popleft().result()
        self._given += 1
        return LoadedBatch(batch)

    def reset(self) -> None:
        """Nothing: the trainer resets at the end of the data, and there is none."""

    def state_dict(self) -> dict[str, object]:
        return {"given": self._given}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self._given = cast(int, state_dict["given"])
        for future in self._coming:
            future.cancel()
        self._coming.clear()

    @property
    def num_accumulate(self) -> int:
        return self._accumulation


@final
class ValidSegmentReader(DataReader[LoadedBatch]):
    """A few batches, always the same."""

    def __init__(self, batches: list[SegmentBatch]) -> None:
        self._batches = batches
        self._position = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[LoadedBatch]:
        if self._position == len(self._batches):
            raise StopIteration
        self._position += 1
        return [LoadedBatch(self._batches[self._position - 1])]

    def reset(self) -> None:
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = state_dict["position"]

    @property
    def num_accumulate(self) -> int:
        return 1
