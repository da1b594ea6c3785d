"""The configuration of a run: one YAML file, one section a stage, everything optional.

A file in ``configs/`` holds only what differs from the defaults here. On the command line
``key=value`` overrides it (``train.max_steps=100``); values are read as YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from speechlm.errors import ConfigError
from speechlm.settings import at_least
from speechlm.settings import build as build


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """Which recordings, and how ``speechlm corpus`` makes some."""

    path: Path | None = None
    """Folder of audio, JSON lines, or lhotse CutSet; None for the one that ``corpus`` makes."""
    kind: Literal["qa", "dialogue", "text"] = "qa"
    """What to make: spoken questions with recorded answers, each alone or in dialogues of two
    channels, or the lines of a text file."""
    text: Path | None = None
    """For ``text``: a UTF-8 file, one utterance a line."""
    num_train_voices: int = 60
    """Asking voices that training hears."""
    num_valid_voices: int = 6
    """Further voices for validation."""
    num_test_voices: int = 12
    """Further voices for the test."""
    renditions: int = 2
    """Times each training voice asks each question, at another pitch, speed and wording."""
    num_workers: int = 0
    """Processes; 0 for one a core."""

    def __post_init__(self) -> None:
        if self.kind == "text" and self.text is None and self.path is None:
            raise ConfigError("corpus.kind is 'text': expected corpus.text=FILE, got none")
        for name in ("num_train_voices", "num_valid_voices", "num_test_voices", "renditions"):
            at_least(1, f"corpus.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """Which tokenizer, and how ``speechlm fit`` fits it."""

    name: str = "logmel-kmeans"
    """A registered tokenizer; ``speechlm list`` shows them."""
    path: Path | None = None
    """A fitted one's folder, or a bundle's, to use instead of fitting one."""
    options: dict[str, Any] = field(default_factory=dict)
    """The tokenizer's own options; its card lists them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeConfig:
    """How ``speechlm tokenize`` fills the unit store."""

    num_workers: int = 0
    """Processes; 0 for one a core."""
    shard_size: int = 512
    """Recordings a Parquet shard; what a kill can cost."""

    def __post_init__(self) -> None:
        at_least(1, "tokenize.shard_size", self.shard_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpansConfig:
    """Which words are spoken and which written, drawn anew in every epoch.

    Sources: Spirit-LM, arXiv:2402.05755; SIMS, arXiv:2504.02398.
    """

    strategy: Literal["random", "span", "poisson"] = "poisson"
    """Each word by itself; turns of geometric length; or Poisson spans of speech in text."""
    probability: float = 0.5
    """``random``: that a word is spoken."""
    mean_words: float = 10.0
    """``span`` and ``poisson``: words of a span, on average."""
    fraction: float = 0.3
    """``poisson``: share of the words that are spoken."""

    def __post_init__(self) -> None:
        if not (0 <= self.probability <= 1 and 0 <= self.fraction <= 1 and self.mean_words >= 1):
            raise ConfigError(
                "expected layout.spans.probability and layout.spans.fraction within 0..1 and "
                f"layout.spans.mean_words of at least 1, got {self.probability}, {self.fraction} "
                f"and {self.mean_words}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutConfig:
    """How units, and text, become LM positions."""

    name: str = "flat"
    """A layout; ``speechlm layout show`` draws them."""
    options: dict[str, Any] = field(default_factory=dict)
    """The layout's own options: delays, stages, weights of streams, …"""
    text_tokenizer: str | None = None
    """For text: a Hugging Face tokenizer, folder or hub id; None for the text LM's own."""
    spans: SpansConfig = field(default_factory=SpansConfig)
    """For ``interleave-words``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The decoder's size."""

    num_layers: int = 6
    model_dim: int = 256
    num_heads: int = 4
    num_kv_heads: int = 4
    """Fewer than ``num_heads`` for grouped-query attention."""
    ffn_dim: int = 704
    """Inner width of SwiGLU."""
    max_positions: int = 2048
    """Longest sequence, LM positions."""
    rope_theta: float = 10_000.0
    tie_embeddings: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in (
            "num_layers",
            "model_dim",
            "num_heads",
            "num_kv_heads",
            "ffn_dim",
            "max_positions",
        ):
            at_least(1, f"model.{name}", getattr(self, name))
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.dropout must be at least 0 and below 1, got {self.dropout}")
        if self.model_dim % self.num_heads or (self.model_dim // self.num_heads) % 2:
            raise ConfigError(
                f"model.num_heads ({self.num_heads}) must divide model.model_dim "
                f"({self.model_dim}) into heads of even width"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_heads ({self.num_heads}) must be a multiple of model.num_kv_heads "
                f"({self.num_kv_heads})"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthShape:
    """The size of the small Transformer that predicts a position's rows one after another."""

    num_layers: int = 4
    dim: int = 256
    num_heads: int = 4
    num_kv_heads: int = 4
    ffn_dim: int = 704
    per_step_weights: bool = True
    """Own weights for each row (Moshi), or the same for all (CSM)."""
    rope: bool = False
    """Rotary positions over rows (CSM)."""
    first_from_body: bool = False
    """Row 0 comes from the body's own head (Moshi's text, CSM)."""
    shared_embeddings: bool = False
    """Reads rows through the body's embeddings (CSM), not its own (Moshi)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(ModelShape):
    """The decoder; its vocabulary comes from the tokenizer and the layout."""

    head: Literal["parallel", "depth"] = "parallel"
    """How the rows of a position are predicted: side by side, or one after another."""
    depth: DepthShape = field(default_factory=DepthShape)
    """For ``head: depth``."""
    text_lm: str | None = None
    """A text LM to start from, folder or hub id; it brings the shape (TWIST, arXiv:2305.13009)."""
    new_rows: Literal["normal", "mean", "acoustic"] = "normal"
    """What embeddings of ids that the text LM lacks start as: drawn, around the mean of its own,
    or where units that sound alike are near."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How ``speechlm train`` trains the unit LM, or a tokenizer or vocoder of one's own."""

    part: Literal["unit-lm", "tokenizer", "vocoder"] = "unit-lm"
    """What to train: the unit LM and a vocoder on a unit store, a tokenizer on a corpus."""
    max_steps: int = 2000
    batch_units: int = 8192
    """LM positions a batch on each process, padding included."""
    gradient_accumulation: int = 1
    """Batches a step on each process."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon``: Muon for the matrices inside layers, AdamW for the rest; fewer steps."""
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-5
    warmup_steps: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    loss_on: Literal["answer", "all"] = "answer"
    """Which positions of a conversation count: the answer's, or the question's too."""
    question_loss_weight: float = 0.1
    """Weight of a question position when ``loss_on`` is ``all``."""
    speech_fraction: float = 0.05
    """Share of sequences that are one recording alone, so that the LM can continue speech."""
    unit_dropout: float = 0.0
    """Probability of replacing a question's unit by a random one (train only)."""
    lora_rank: int = 0
    """Above 0, the text LM's projections stay as they are and learn a correction of this rank;
    embeddings, norms and heads train whole (LoRA, arXiv:2106.09685)."""
    lora_alpha: float = 16.0
    """The correction is scaled by ``lora_alpha / lora_rank``."""
    lora_dropout: float = 0.0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 where the processor computes in it, else float32."""
    validate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    report_every: int = 20
    """Steps between lines of progress and TensorBoard points."""
    device: str = "auto"
    """``cpu``, ``cuda``, or ``auto``: cuda where there is one."""

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "batch_units",
            "gradient_accumulation",
            "validate_every",
            "checkpoint_every",
            "keep_checkpoints",
            "report_every",
        ):
            at_least(1, f"train.{name}", getattr(self, name))
        at_least(0, "train.lora_rank", self.lora_rank)
        for name in ("speech_fraction", "unit_dropout", "question_loss_weight", "lora_dropout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"train.{name} must be within 0..1, got {getattr(self, name)}")
        if not 0.0 <= self.min_learning_rate <= self.learning_rate:
            raise ConfigError(
                "expected 0 <= train.min_learning_rate <= train.learning_rate, got "
                f"{self.min_learning_rate} and {self.learning_rate}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentsConfig:
    """What a step of training a tokenizer or vocoder hears."""

    batch_size: int = 16
    """Segments a batch on each process."""
    duration_s: float = 1.0
    """Length of a segment, s. Parts that take whole recordings get as many as fit into
    ``batch_size`` times this."""
    cache_gb: float = 1.0
    """Memory for decoded recordings, so that each is read but once."""

    def __post_init__(self) -> None:
        at_least(1, "segments.batch_size", self.batch_size)
        if not 0.01 <= self.duration_s <= 600:
            raise ConfigError(
                f"segments.duration_s must be within 0.01..600 s, got {self.duration_s}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class VocoderConfig:
    """Which vocoder goes into the bundle."""

    name: str = "auto"
    """A registered vocoder; ``speechlm list`` shows them. ``auto``: the one that the tokenizer
    names."""
    path: Path | None = None
    """A trained one's folder, or a bundle's."""
    options: dict[str, Any] = field(default_factory=dict)
    """The vocoder's own options when it is trained; its card lists them."""
    voice: Path | None = None
    """A recording in whose voice the bundle answers, for vocoders that take a voice; None for the
    voice of the corpus' answers."""


LEAST_TEMPERATURE = 1e-3
"""Below, scores divided by it overflow; 0 is what is meant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How the next unit is drawn."""

    temperature: float = 0.0
    """0 takes the most probable unit."""
    top_k: int = 0
    """Draw among the k most probable; 0 for all."""
    top_p: float = 1.0
    """Draw among the most probable units that together hold this much."""
    min_p: float = 0.0
    """Draw among units at least this probable, as a share of the most probable one."""
    repetition_penalty: float = 1.0
    """Above 1: units that came already are less probable."""
    guidance: float = 1.0
    """Classifier-free guidance: how far to go from the unconditioned prompt to the real one."""
    max_units: int = 500
    """Longest output, LM positions."""
    window: int = 0
    """Positions to remember once the context is full, the first few included: output may then
    outlast the model's context. 0: it ends there."""

    def __post_init__(self) -> None:
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature <= 1000:
            raise ConfigError(
                f"expected temperature 0, or {LEAST_TEMPERATURE} to 1000, got {self.temperature}"
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"expected top_k >= 0 and 0 < top_p <= 1, got {self.top_k} and {self.top_p}"
            )
        if not (
            0 <= self.min_p < 1
            and 1 <= self.repetition_penalty <= 100
            and 0 <= self.guidance <= 100
        ):
            raise ConfigError(
                "expected 0 <= min_p < 1, 1 <= repetition_penalty <= 100 and 0 <= guidance <= 100, "
                f"got {self.min_p}, {self.repetition_penalty} and {self.guidance}"
            )
        at_least(0, "generate.window", self.window)
        at_least(1, "generate.max_units", self.max_units)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """What ``speechlm evaluate`` measures on the corpus."""

    num_questions: int = 240
    """Questions asked of the model, from the test voices and from the training voices each."""
    num_examples: int = 8
    """Questions shown with players and spectrograms in the report."""
    suites: tuple[str, ...] = ("mini",)
    """Benchmarks to run beside, NAME or NAME=FOLDER as after ``--suite``; 'mini' is all that are
    made on the spot."""

    def __post_init__(self) -> None:
        at_least(1, "evaluate.num_questions", self.num_questions)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One run, from recordings to report; every stage writes under ``output``."""

    output: Path = Path("runs/default")
    seed: int = 1
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    segments: SegmentsConfig = field(default_factory=SegmentsConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    generate: SamplingConfig = field(default_factory=SamplingConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        if self.train.lora_rank and self.model.text_lm is None:
            raise ConfigError(
                "train.lora_rank corrects the weights of a text LM: expected model.text_lm, got "
                "none; name one, or set train.lora_rank=0"
            )

    @property
    def corpus_path(self) -> Path:
        return self.corpus.path or self.output / "corpus"

    @property
    def tokenizer_path(self) -> Path:
        return self.tokenizer.path or self.output / "tokenizer"

    @property
    def store_path(self) -> Path:
        return self.output / "units"

    @property
    def train_path(self) -> Path:
        if self.train.part == "unit-lm":
            return self.output / "train"
        return self.output / f"train-{self.train.part}"

    @property
    def vocoder_path(self) -> Path:
        """Where a trained vocoder is, or will be."""
        return self.vocoder.path or self.output / "vocoder"

    @property
    def bundle_path(self) -> Path:
        return self.output / "bundle"


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML and apply ``key=value`` overrides.

    Raises:
        ConfigError: The file is missing or not YAML, a key is not known (the nearest is
            named), or a value does not fit.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such configuration file") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{path}: not a YAML file that can be read: {reason}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"{path}: expected keys and values, got a {type(loaded).__name__}")
        values = loaded or {}
    for override in overrides:
        _apply_override(values, override)
    _check_shape_of_text_lm(values.get("model"))
    return build(RunConfig, values)


def _check_shape_of_text_lm(model: Any) -> None:
    """Refuse a shape beside a text LM, which has one."""
    if not isinstance(model, Mapping) or model.get("text_lm") is None:
        return
    beside = [shape.name for shape in fields(ModelShape) if shape.name in model]
    beside = [name for name in beside if name != "dropout"]
    if beside:
        raise ConfigError(
            f"model.text_lm={model['text_lm']} brings its own shape: expected no "
            f"{', '.join(f'model.{name}' for name in beside)} beside it"
        )


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"expected key=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not YAML") from error
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        value = float(value)  # YAML 1.1 reads 1e-3 as text
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {section!r} is a value, not a section")
    values[last] = value
