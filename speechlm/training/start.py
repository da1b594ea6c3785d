"""What a run trains: the layout, vocabulary and shape, and a text LM's weights to start from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from speechlm.config import ModelConfig, RunConfig
from speechlm.data.store import UnitStore
from speechlm.errors import ConfigError, InputError
from speechlm.layouts.grid import Layout
from speechlm.layouts.registry import build_layout, layout_options
from speechlm.layouts.text import TextTokenizer
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model.architecture import DecoderConfig, DepthConfig
from speechlm.model.decoder import Decoder
from speechlm.parts import fingerprint

WEIGHTED = "question_weight"
"""The option of those layouts that weigh what is asked."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Language:
    """How a run writes sequences."""

    layout: Layout
    """As it is saved with the LM, and validated on."""
    train_layout: Layout
    """The same with the weights of training."""
    vocabulary: Vocabulary
    text_tokenizer: TextTokenizer | None


def choose_language(config: RunConfig, store: UnitStore) -> Language:
    """Fit a run's layout to a store.

    Raises:
        ConfigError: An unknown layout or option, or one that does not fit the store's streams.
        InputError: The layout needs a text tokenizer, and none is named.
    """
    name, options = config.layout.name, config.layout.options
    layout = build_layout(name, options, store.num_codebooks)
    train_layout = layout
    # Validation counts what the LM is for, whatever else training counts.
    if config.train.loss_on == "all" and WEIGHTED in layout_options(name):
        weight = options.get(WEIGHTED, config.train.question_loss_weight)
        train_layout = build_layout(name, {**options, WEIGHTED: weight}, store.num_codebooks)
    text_tokenizer = None
    if layout.has_text:
        source = config.layout.text_tokenizer or config.model.text_lm
        if source is None:
            raise InputError(
                f"the layout {name!r} needs a text tokenizer; set model.text_lm or "
                "layout.text_tokenizer"
            )
        text_tokenizer = TextTokenizer.load(source)
    vocabulary = Vocabulary(
        tokenizer_fingerprint=store.fingerprint,
        stream_sizes=layout.stream_sizes(store.codebook_sizes),
        text_size=0 if text_tokenizer is None else text_tokenizer.size,
        text_fingerprint=None if text_tokenizer is None else text_tokenizer.fingerprint,
    )
    layout.check(vocabulary)
    return Language(
        layout=layout,
        train_layout=train_layout,
        vocabulary=vocabulary,
        text_tokenizer=text_tokenizer,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """What the decoder is before the first step."""

    shape: DecoderConfig
    weights: Decoder | None
    """Made of a text LM; None to draw all anew."""
    text_lm: str | None
    """The text LM's fingerprint."""
    features: Tensor | None
    """What each unit sounds like, float32 [V_units, D], for its embedding; None to draw it."""


def choose_start(config: RunConfig, language: Language, features: Tensor | None) -> Start:
    """Choose a run's shape, and read the text LM that it starts from.

    Args:
        config: The run's.
        language: Its vocabulary and layout.
        features: What each unit sounds like, float32 [units, D], where the tokenizer knows.

    Raises:
        CheckpointError: The text LM cannot be read.
        ConfigError: The head does not fit the layout, or ``new_rows`` what is known of units.
    """
    model, vocabulary = config.model, language.vocabulary
    depth = _depth(model, language)
    features = _for_streams(features, vocabulary)
    if model.text_lm is None:
        shape = replace(DecoderConfig.of(model, vocabulary.size), depth=depth)
        return Start(shape=shape, weights=None, text_lm=None, features=features)
    from speechlm.model.hf import from_hf
    from speechlm.model.warm_start import warm_start

    acoustic = model.new_rows == "acoustic"
    if acoustic and features is None:
        raise ConfigError(
            "model.new_rows is 'acoustic', but the run's tokenizer does not say what its units "
            "sound like; use 'normal' or 'mean'"
        )
    text_model = from_hf(model.text_lm)
    named = fingerprint("text-lm", text_model.config.to_dict(), text_model.state_dict())
    weights = warm_start(
        text_model,
        vocabulary,
        init="mean" if model.new_rows == "mean" else "normal",
        keep_text=vocabulary.text_size > 0,
        seed=config.seed,
        dropout=model.dropout,
        depth=depth,
    )
    return Start(
        shape=weights.config,
        weights=weights,
        text_lm=named,
        features=features if acoustic else None,
    )


def _depth(model: ModelConfig, language: Language) -> DepthConfig | None:
    if model.head == "parallel":
        return None
    row_ids = language.layout.row_ids(language.vocabulary)
    if len(row_ids) < 2:
        raise ConfigError(
            f"model.head is 'depth', which predicts rows one after another, but the layout "
            f"{language.layout.name!r} has 1; use model.head=parallel, or a layout of several rows"
        )
    values: dict[str, Any] = asdict(model.depth)
    return DepthConfig(**values).of(row_ids)


def _for_streams(features: Tensor | None, vocabulary: Vocabulary) -> Tensor | None:
    """Features of every stream's units, where all streams are of the units that they tell of."""
    if features is None:
        return None
    sizes = vocabulary.stream_sizes
    if any(size != len(features) for size in sizes):
        return None
    return torch.cat([features] * len(sizes))
