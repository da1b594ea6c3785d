"""What shape a decoder has: enough switches to read the text LMs people start from.

The defaults are Llama's. Other families differ in the fields after ``vocab_size``, which a
run's configuration does not show: they come with a text LM's weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from torch import Tensor

from speechlm.config import ModelShape
from speechlm.errors import ConfigError
from speechlm.settings import at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those first trained on.

    Sources:
        linear: Chen et al. 2023, arXiv:2306.15595. llama3: Dubey et al. 2024, arXiv:2407.21783.
        yarn: Peng et al. 2023, arXiv:2309.00071.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_positions: int = 0
    """Context before stretching; llama3 and yarn."""
    low_freq_factor: float = 1.0
    """llama3."""
    high_freq_factor: float = 4.0
    """llama3."""
    beta_fast: float = 32.0
    """yarn."""
    beta_slow: float = 1.0
    """yarn."""
    attention_factor: float | None = None
    """yarn: scale of queries and keys; None for 0.1 ln(factor) + 1."""
    truncate: bool = True
    """yarn: round the ramp's ends to whole dimensions."""

    def __post_init__(self) -> None:
        if not 1 <= self.factor < math.inf:
            raise ConfigError(f"a rope scaling factor must be at least 1, got {self.factor}")
        if self.kind != "linear" and self.original_max_positions < 1:
            raise ConfigError(f"rope scaling {self.kind!r} needs original_max_positions, got none")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                "expected low_freq_factor above 0 and below high_freq_factor, got "
                f"{self.low_freq_factor} and {self.high_freq_factor}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthConfig:
    """The small Transformer that predicts the streams of one position one after another.

    Moshi: ``per_step_weights``, ``first_from_body`` (the text stream), no ``last_norm``.
    CSM: ``first_from_body``, ``shared_embeddings`` and ``rope``, without ``per_step_weights``.
    """

    row_sizes: tuple[int, ...] = ()
    """Ids that each stream may hold, as the layout says: :meth:`of`."""
    num_layers: int = 4
    dim: int = 256
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 0
    """0: ``dim / num_heads``."""
    ffn_dim: int = 704
    """Inner width of SwiGLU."""
    per_step_weights: bool = True
    """Own weights for each stream (Moshi), or the same ones for all (CSM)."""
    rope: bool = False
    """Rotary positions over streams (CSM); weights of their own tell steps apart (Moshi)."""
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    last_norm: bool = True
    """A norm before the heads (CSM), or none (Moshi)."""
    first_from_body: bool = False
    """Stream 0 comes from the body's own head (CSM; Moshi's text), not from here."""
    shared_embeddings: bool = False
    """Reads the body's state as a position of its own, then each stream through the body's
    embedding, all by one projection (CSM). Otherwise the body's state is added to every step,
    to this part's own embedding of the stream before (Moshi)."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "dim", "num_heads", "num_kv_heads", "ffn_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"depth.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"depth.num_heads ({self.num_heads}) must be a multiple of depth.num_kv_heads "
                f"({self.num_kv_heads})"
            )
        if not self.head_dim:
            if self.dim % self.num_heads:
                raise ConfigError(
                    f"depth.num_heads ({self.num_heads}) must divide depth.dim ({self.dim})"
                )
            object.__setattr__(self, "head_dim", self.dim // self.num_heads)
        if self.rope and self.head_dim % 2:
            raise ConfigError(f"depth.rope needs heads of even width, got {self.head_dim}")
        if self.per_step_weights and self.shared_embeddings:
            raise ConfigError(
                "depth.shared_embeddings needs depth.per_step_weights to be off: "
                "weights of a step's own come with embeddings of its own"
            )
        if any(size < 1 for size in self.row_sizes):
            raise ConfigError(f"depth.row_sizes must be at least 1 each, got {self.row_sizes}")

    def of(self, row_ids: Sequence[Tensor]) -> Self:
        """The same for a layout's rows, R tensors int64 [V_r]."""
        return replace(self, row_sizes=tuple(len(ids) for ids in row_ids))


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig(ModelShape):
    """A :class:`ModelShape`, the vocabulary it is for, and what sets its family apart."""

    vocab_size: int
    norm_eps: float = 1e-5
    head_dim: int = 0
    """Width of a head; 0: ``model_dim / num_heads``."""
    norm: Literal["rms", "layer"] = "rms"
    qk_norm: bool = False
    """RMSNorm of each query and key head (Qwen3)."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    """SwiGLU; False for a plain two-layer feed-forward block."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    position: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    position_offset: int = 0
    """Rows of the learned position table before position 0 (OPT: 2)."""
    rotary_fraction: float = 1.0
    """Share of a head that is rotated (GPT-NeoX)."""
    rope_scaling: RopeScaling | None = None
    parallel_residual: bool = False
    """Attention and feed-forward both read the layer's input (GPT-NeoX)."""
    sliding_window: int | None = None
    """Positions that attention sees back, itself included (Mistral)."""
    embed_scale: float = 1.0
    depth: DepthConfig | None = None
    """None: streams of a position are predicted side by side."""

    @classmethod
    def of(cls, model: ModelShape, vocab_size: int) -> Self:
        """The shape of a run's configuration, for a vocabulary."""
        shape = {field.name: getattr(model, field.name) for field in fields(ModelShape)}
        return cls(**shape, vocab_size=vocab_size)

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ConfigError(f"expected a vocabulary of at least 1 id, got {self.vocab_size}")
        sizes = ("num_layers", "model_dim", "num_heads", "num_kv_heads", "ffn_dim", "max_positions")
        for name in sizes:
            at_least(1, f"model.{name}", getattr(self, name))
        if not 0 <= self.norm_eps < 1:
            raise ConfigError(f"expected norm_eps of 0 or more, below 1, got {self.norm_eps}")
        if not 1 < self.rope_theta < math.inf:
            raise ConfigError(f"expected rope_theta above 1, got {self.rope_theta}")
        if self.sliding_window is not None:
            at_least(1, "sliding_window", self.sliding_window)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )
        if not self.head_dim:
            if self.model_dim % self.num_heads:
                raise ConfigError(
                    f"num_heads ({self.num_heads}) must divide model_dim ({self.model_dim})"
                )
            object.__setattr__(self, "head_dim", self.model_dim // self.num_heads)
        if self.position == "rope" and (self.rotary_dim < 2 or self.rotary_dim % 2):
            raise ConfigError(f"expected an even rotary width a head, got {self.rotary_dim}")

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that are rotated."""
        return int(self.head_dim * self.rotary_fraction)

    def to_dict(self) -> dict[str, Any]:
        """Only what differs from the defaults, plus the shape."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_dict`.

        Raises:
            ConfigError: A key is unknown, missing, or does not fit.
        """
        from speechlm.config import build

        return build(cls, values, "decoder")
