"""Training of the unit LM as a fairseq2 recipe: the model, the data, and what a step does.

fairseq2 brings the loop, data parallelism, mixed precision, gradient accumulation, clipping,
checkpoints, resuming and validation. This module imports it, which takes seconds, so it is
imported by training alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast, final

import fairseq2.recipe  # noqa: F401 (its modules import each other in a circle: this is the way in)
import torch
from fairseq2.composition import register_model_family
from fairseq2.evaluator import EvalUnit
from fairseq2.metrics import Mean, MetricBag, Sum
from fairseq2.metrics.recorders import MetricRecorder
from fairseq2.recipe import Recipe, RecipeContext
from fairseq2.recipe.component import register_component
from fairseq2.recipe.config import (
    AdamWConfig,
    AdamWGroupConfig,
    CommonSection,
    CosineAnnealingLRConfig,
    GangSection,
    GradAccumulationConfig,
    LRSchedulerSection,
    MetricRecordersConfig,
    MixedPrecisionConfig,
    ModelSection,
    OptimizerSection,
    ParameterGroupConfig,
    RegimeSection,
    TensorBoardConfig,
    TrainerSection,
)
from fairseq2.recipe.optim import prepare_parameter_groups
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.task import Task
from fairseq2.trainer import Trainer, TrainUnit
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from speechlm.config import RunConfig, TrainConfig
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Decoder
from speechlm.training.batches import UnitBatch
from speechlm.training.headed import HeadedDecoder
from speechlm.training.lora import add_lora
from speechlm.training.muon import MuonAdamW
from speechlm.training.objectives import Objective, next_column_objective
from speechlm.training.reader import TrainReader, ValidReader
from speechlm.training.recorder import RunRecorder, UnitLMWording, row_metrics
from speechlm.training.sequences import SequenceSet
from speechlm.training.start import Start

FAMILY = "speechlm-decoder"
ARCHITECTURE = "this-run"
MUON = "muon-adamw"
NORMS = r".*(norm\.weight|bias)$"
LAYER_MATRICES = r".*layers\..*_proj\.weight$"
"""What Muon steps; with LoRA nothing, for what a correction adds has no matrix of its own."""


@dataclass(kw_only=True)
class MuonGroupConfig(ParameterGroupConfig):
    """What differs in a group of parameters."""

    muon: bool = False
    weight_decay: float = 0.0


@dataclass(kw_only=True)
class MuonConfig:
    """Settings of :class:`MuonAdamW`."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float
    groups: list[MuonGroupConfig]


@dataclass(kw_only=True)
class RecipeSettings:
    """What fairseq2 is told; made from a :class:`RunConfig` by :func:`recipe_settings`."""

    model: ModelSection
    optimizer: OptimizerSection
    lr_scheduler: LRSchedulerSection
    regime: RegimeSection
    trainer: TrainerSection
    common: CommonSection
    gang: GangSection = field(default_factory=GangSection)


def unit_lm_settings(config: RunConfig, dtype: torch.dtype) -> RecipeSettings:
    """Say a run that trains the unit LM in fairseq2's words."""
    return recipe_settings(config, dtype, FAMILY, _optimizer_section(config.train))


def recipe_settings(
    config: RunConfig, dtype: torch.dtype, family: str, optimizer: OptimizerSection
) -> RecipeSettings:
    """What the training of any part has in common."""
    train = config.train
    warmup = min(train.warmup_steps, train.max_steps - 1)
    return RecipeSettings(
        model=ModelSection(family=family, arch=ARCHITECTURE),
        optimizer=optimizer,
        lr_scheduler=LRSchedulerSection(
            config=CosineAnnealingLRConfig(
                cycle_len=train.max_steps - warmup,
                num_warmup_steps=warmup,
                start_lr=train.learning_rate / (warmup + 1),
                final_lr=min(train.min_learning_rate, train.learning_rate),
                final_lr_scale=None,
            )
        ),
        regime=RegimeSection(
            num_steps=train.max_steps,
            validate_every_n_steps=train.validate_every,
            checkpoint_every_n_steps=train.checkpoint_every,
            keep_last_n_checkpoints=train.keep_checkpoints,
            # Every step, so that a step is on record before a checkpoint of it exists.
            publish_metrics_every_n_steps=1,
        ),
        trainer=TrainerSection(
            mixed_precision=MixedPrecisionConfig(
                mode="off" if dtype == torch.float32 else "auto", dtype=dtype
            ),
            grad_accumulation=GradAccumulationConfig(num_batches=train.gradient_accumulation),
            max_grad_norm=train.max_grad_norm,
        ),
        common=CommonSection(
            seed=config.seed,
            no_sweep_dir=True,
            metric_recorders=MetricRecordersConfig(tensorboard=TensorBoardConfig(enabled=False)),
        ),
    )


def _optimizer_section(train: TrainConfig) -> OptimizerSection:
    if train.optimizer == "adamw":
        return OptimizerSection(
            config=AdamWConfig(
                lr=train.learning_rate,
                betas=train.betas,
                weight_decay=train.weight_decay,
                impl="fused",
                groups=[AdamWGroupConfig(params=NORMS, weight_decay=0.0)],
            )
        )
    return OptimizerSection(
        name=MUON,
        config=MuonConfig(
            lr=train.learning_rate,
            betas=train.betas,
            weight_decay=train.weight_decay,
            groups=[
                MuonGroupConfig(params=NORMS),
                MuonGroupConfig(params=LAYER_MATRICES, muon=True, weight_decay=train.weight_decay),
            ],
        ),
    )


def _create_muon(resolver: DependencyResolver, config: MuonConfig) -> MuonAdamW:
    groups = prepare_parameter_groups(resolver.resolve(Module), config.groups)
    return MuonAdamW(
        cast(list[dict[str, object]], groups),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )


@final
class UnitLMRecipe(Recipe):
    """Trains a :class:`Decoder` on the sequences of a unit store."""

    def __init__(
        self,
        config: RunConfig,
        *,
        train: SequenceSet,
        valid: SequenceSet,
        start: Start,
        first_step: int,
    ) -> None:
        """Prepare a run.

        Args:
            config: The run's.
            train: What to learn from.
            valid: What to measure on; may be empty.
            start: What a new model is before the first step.
            first_step: The first step that this process runs, from 1.
        """
        self.decoder: Decoder | None = None
        """The model, once there is one."""
        self.trainer: Trainer | None = None
        """The trainer, once there is one."""
        self._config = config
        self._train = train
        self._valid = valid
        self._start = start
        self._first_step = first_step

    @property
    def config_kls(self) -> type[object]:
        return RecipeSettings

    def register(self, container: DependencyContainer) -> None:
        # fairseq2 has just sent the whole process's log to the terminal; what concerns the
        # person there, the recorder says, and failures are raised.
        logging.getLogger().handlers[:] = [logging.NullHandler()]
        row_ids = self._train.layout.row_ids(self._train.vocabulary)

        def create_model(config: DecoderConfig) -> HeadedDecoder:
            return HeadedDecoder(Decoder(config), row_ids)

        register_model_family(
            container, FAMILY, kls=HeadedDecoder, config_kls=DecoderConfig, factory=create_model
        )
        register_component(
            container, Optimizer, name=MUON, config_kls=MuonConfig, factory=_create_muon
        )
        container.register_instance(DecoderConfig, self._start.shape, key=ARCHITECTURE)

        def create_recorder(resolver: DependencyResolver) -> MetricRecorder:
            return RunRecorder(
                self._config.train_path,
                UnitLMWording(),
                max_steps=self._config.train.max_steps,
                report_every=self._config.train.report_every,
                first_step=self._first_step,
            )

        container.collection.register(MetricRecorder, create_recorder)  # type: ignore[type-abstract]

    def setup_model(self, context: RecipeContext, model: Module, newly_initialized: bool) -> Module:
        # In place: fairseq2 0.8.1 goes on with the model that it gave, whatever comes back.
        decoder = cast(HeadedDecoder, model).decoder
        # Only rank 0 has weights yet; the others get its by broadcast.
        if newly_initialized and context.gangs.root.rank == 0:
            if self._start.weights is not None:
                decoder.load_state_dict(self._start.weights.state_dict())
            if self._start.features is not None:
                decoder.init_unit_embeddings(self._start.features, seed=self._config.seed)
        self._start = replace(self._start, weights=None)  # no second copy while it trains
        if self._config.train.lora_rank:
            add_lora(decoder, self._config.train)
        if (
            decoder.depth is not None
            and not decoder.depth.first_row
            and decoder.lm_head is not None
        ):
            # No row reads it, and data parallelism would wait for its gradient.
            decoder.lm_head.requires_grad_(False)
        self.decoder = decoder
        return model

    def create_task(self, context: RecipeContext) -> Task:
        model = context.get_data_parallel_model()
        gang = context.gangs.dp
        reader = TrainReader(
            self._train,
            self._config.train,
            seed=self._config.seed,
            rank=gang.rank,
            size=gang.size,
        )
        measured = len(self._valid) > 0
        valid_reader = ValidReader(
            self._valid, self._config.train.batch_units, rank=gang.rank, size=gang.size
        )
        num_rows = self._train.layout.num_rows
        self.trainer = context.create_trainer(
            UnitLMTrainUnit(model, num_rows),
            reader,
            [UnitLMValidUnit(model, num_rows)] if measured else None,
            [valid_reader] if measured else None,
        )
        return self.trainer


@final
class UnitLMTrainUnit(TrainUnit[UnitBatch]):
    """What a training step does with a batch."""

    def __init__(self, model: Module, num_rows: int) -> None:
        self._model = model
        self._num_rows = num_rows

    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        _add_metrics(metric_bag, self._num_rows)
        metric_bag.add("amount", Sum())

    def process_batch(self, batch: UnitBatch, metric_bag: MetricBag) -> tuple[Tensor, int]:
        objective = _objective(self._model, batch)
        _update_metrics(metric_bag, objective)
        metric_bag.get("amount", Sum).update(batch.num_positions)
        # fairseq2 sums the second over batches and processes and divides gradients by it;
        # its annotation says int, but weights need not be whole numbers.
        return objective.losses.sum(), cast(int, float(objective.weights.sum()))


@final
class UnitLMValidUnit(EvalUnit[UnitBatch]):
    """What validation does with a batch."""

    def __init__(self, model: Module, num_rows: int) -> None:
        self._model = model
        self._num_rows = num_rows

    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        _add_metrics(metric_bag, self._num_rows)

    def process_batch(self, batch: UnitBatch, metric_bag: MetricBag) -> None:
        _update_metrics(metric_bag, _objective(self._model, batch))


def _objective(model: Module, batch: UnitBatch) -> Objective:
    scores, targets = model(batch.ids, select=batch.select, targets=batch.targets)
    return next_column_objective(scores, targets, batch.weights)


def _add_metrics(metric_bag: MetricBag, num_rows: int) -> None:
    for name in ("nll", "accuracy", *row_metrics(num_rows)):
        metric_bag.add(name, Mean())


@torch.inference_mode()
def _update_metrics(metric_bag: MetricBag, objective: Objective) -> None:
    losses, weights = objective.losses.detach(), objective.weights
    weight = weights.sum()
    if weight > 0:
        metric_bag.get("nll", Mean).update(losses.sum() / weight, weight=weight)
        metric_bag.get("accuracy", Mean).update(objective.correct.sum() / weight, weight=weight)
    for name, loss, counted in zip(row_metrics(len(losses)), losses, weights, strict=False):
        if counted > 0:
            metric_bag.get(name, Mean).update(loss / counted, weight=counted)


def last_checkpoint(folder: Path) -> int:
    """The step of the last whole checkpoint in ``folder``, 0 for none.

    fairseq2 writes ``step_N.tmp`` and renames it when it is complete.
    """
    steps = [
        int(path.name.removeprefix("step_"))
        for path in folder.glob("step_*")
        if path.name.removeprefix("step_").isdigit() and (path / "trainer").is_dir()
    ]
    return max(steps, default=0)
