"""How ``ssl-kmeans`` is made: the options of a run, and what a preset fills in of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speechlm.errors import CheckpointError, ConfigError
from speechlm.settings import at_least, build
from speechlm_tokenizers.ssl_presets import PRESETS


@dataclass(frozen=True, kw_only=True, slots=True)
class SSLKMeansOptions:
    """How to make one, ``tokenizer.options`` of a run."""

    preset: str | None = None
    """A published pair, which sets what is not set beside it; the card lists them."""
    model: str | None = None
    """The encoder: a folder that transformers saved, a hub id, or ``fairseq2:NAME``."""
    layer: int | None = None
    """Whose output is clustered, from 1; 0 for what enters the first layer."""
    kmeans: str | None = None
    """A fitted k-means, path or address; None to fit one on the corpus."""
    num_units: int | None = None
    """Centroids to fit, 500 where not set; or what a fitted k-means must have."""
    normalize: bool | None = None
    """Whether recordings are brought to mean 0 and variance 1; None for what the checkpoint
    says."""
    window_s: float = 20.0
    """Longest stretch that is computed in one piece, s; bounds memory, and a stream's delay."""
    context_s: float = 2.0
    """What windows of longer recordings overlap by on either side, s."""
    revision: str | None = None
    """Of the hub's repository: a branch, tag or commit."""
    sha256: str | None = None
    """What the SHA-256 of the encoder's file of weights must begin with."""
    kmeans_sha256: str | None = None
    """What the SHA-256 of the file of the k-means must begin with."""
    trust: bool = False
    """Whether ``kmeans`` may be a pickle, which can run any program."""
    fit_frames: int = 200_000
    """Most frames kept in memory to fit on: a uniform sample of all."""
    iterations: int = 30
    """Most passes of k-means over them."""
    device: str = "auto"
    """What fits: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one."""

    def __post_init__(self) -> None:
        at_least(2, "num_units", self.units_to_fit)
        at_least(1, "iterations", self.iterations)
        if self.fit_frames < self.units_to_fit:
            raise ConfigError(
                f"fit_frames ({self.fit_frames}) must be at least num_units ({self.units_to_fit})"
            )

    @property
    def units_to_fit(self) -> int:
        return 500 if self.num_units is None else self.num_units


def resolve(options: Mapping[str, Any]) -> SSLKMeansOptions:
    """Options with those of their preset filled in.

    Raises:
        ConfigError: One is not known or does not fit, or there is no encoder or layer.
        CheckpointError: The k-means of the preset is not to be had without asking for it.
    """
    chosen = build(SSLKMeansOptions, options, "tokenizer.options")
    if chosen.preset is not None:
        if chosen.preset not in PRESETS:
            raise ConfigError(
                f"tokenizer.options.preset: expected one of {', '.join(PRESETS)}, "
                f"got {chosen.preset!r}"
            )
        preset = PRESETS[chosen.preset]
        if chosen.kmeans is None and preset.kmeans is None:
            raise CheckpointError(
                f"the k-means of preset {chosen.preset!r} has no address: {preset.access}"
            )
        given = dict(options)
        for name in ("model", "layer", "num_units", "kmeans", "normalize"):
            if given.get(name) is None:
                given[name] = getattr(preset, name)
        if chosen.kmeans is None and chosen.kmeans_sha256 is None:
            given["kmeans_sha256"] = preset.sha256
        chosen = build(SSLKMeansOptions, given, "tokenizer.options")
    for name in ("model", "layer"):
        if getattr(chosen, name) is None:
            raise ConfigError(
                f"tokenizer 'ssl-kmeans' needs an encoder: expected tokenizer.options.model and "
                f"tokenizer.options.layer, or tokenizer.options.preset; got no {name}"
            )
    return chosen
