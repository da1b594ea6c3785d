"""The unit LM's network: a decoder-only Transformer, read top to bottom.

RMSNorm before each block, rotary positions, grouped-query attention and SwiGLU, without
biases. Parameters are named as in Hugging Face's ``LlamaForCausalLM``, so the same weights
open there and give the same logits.

Sources:
    Llama: Touvron et al. 2023, arXiv:2302.13971. Rotary positions: Su et al. 2021,
    arXiv:2104.09864. Grouped queries: Ainslie et al. 2023, arXiv:2305.13245. SwiGLU: Shazeer
    2020, arXiv:2002.05202. RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from speechlm.config import ModelConfig
from speechlm.errors import InputError
from speechlm.model.cache import KVCache

INIT_STD = 0.02
ACOUSTIC_STD = 0.2
"""Of unit embeddings that start from what units sound like, where they are not the head too:
large beside a step of the optimizer, or training would soon undo their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig(ModelConfig):
    """A :class:`ModelConfig` and the vocabulary it is for."""

    vocab_size: int
    norm_eps: float = 1e-5

    @classmethod
    def of(cls, model: ModelConfig, vocab_size: int) -> Self:
        return cls(**asdict(model), vocab_size=vocab_size)

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads


class RMSNorm(nn.Module):
    """Scale each position to unit root mean square, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        # One cast here rather than one in each projection that reads it.
        return (self.weight * (wide * scale).to(x.dtype)).to(_compute_dtype(x))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Context:
    """What every layer needs to know of the positions at hand."""

    cos: Tensor
    """float [B, 1, S, head_dim / 2]."""
    sin: Tensor
    mask: Tensor | None
    """Which key each query sees, bool [B, 1, S, keys]; None for plainly causal."""
    positions: Tensor | None
    """Slots in the cache, int64 [B, S]."""
    cache: KVCache | None


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        kv_dim = config.num_kv_heads * config.head_dim
        self.layer = layer
        self.head_dim = config.head_dim
        self.group_size = config.num_heads // config.num_kv_heads
        self.q_proj = nn.Linear(config.model_dim, config.model_dim, bias=False)
        self.k_proj = nn.Linear(config.model_dim, kv_dim, bias=False)
        self.v_proj = nn.Linear(config.model_dim, kv_dim, bias=False)
        self.o_proj = nn.Linear(config.model_dim, config.model_dim, bias=False)

    def forward(self, x: Tensor, context: _Context) -> Tensor:
        split = "b s (h d) -> b h s d"
        q = rearrange(self.q_proj(x), split, d=self.head_dim)
        k = rearrange(self.k_proj(x), split, d=self.head_dim)
        v = rearrange(self.v_proj(x), split, d=self.head_dim)
        q, k = _rotate(q, context), _rotate(k, context)
        if context.cache is not None and context.positions is not None:
            k, v = context.cache.write(self.layer, context.positions, k, v)
        if self.group_size > 1:
            k = k.repeat_interleave(self.group_size, dim=1)
            v = v.repeat_interleave(self.group_size, dim=1)
        output: Tensor = self.o_proj(
            rearrange(_attend(q, k, v, context.mask), "b h s d -> b s (h d)")
        )
        return output


class SwiGLU(nn.Module):
    """The feed-forward block, gated by SiLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.model_dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.model_dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.model_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return output


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each on a normalised input and added to it."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.input_layernorm = RMSNorm(config.model_dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.model_dim, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, context: _Context, select: Tensor | None = None) -> Tensor:
        x = x + self._drop(self.self_attn(self.input_layernorm(x), context))
        if select is not None:
            x = rearrange(x, "b s d -> (b s) d")[select]
        return x + self._drop(self.mlp(self.post_attention_layernorm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return _dropout(x, self.dropout) if self.training else x


class DecoderStack(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.model_dim)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer) for layer in range(config.num_layers)
        )
        self.norm = RMSNorm(config.model_dim, config.norm_eps)


class Decoder(nn.Module):
    """Next-unit prediction.

    Positions are causal, so padding on the right of a row needs no mask. Several documents
    share a row when ``segment_ids`` tells them apart: each is then computed as if alone.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = DecoderStack(config)
        self.lm_head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.model_dim, config.vocab_size, bias=False)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights from torch's global generator."""
        narrow = INIT_STD / (2 * self.config.num_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                # What is added to the residual stream stays small however deep the model is.
                added = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=narrow if added else INIT_STD)

    def forward(
        self,
        ids: Tensor,
        *,
        segment_ids: Tensor | None = None,
        cache: KVCache | None = None,
        lengths: Tensor | None = None,
        select: Tensor | None = None,
    ) -> Tensor:
        """Score what comes after each position.

        Args:
            ids: int64 [B, S]; with a cache, the positions after those it holds.
            segment_ids: Which document each position belongs to, int64 [B, S]; a document's
                positions are neighbours. None when a row is one document.
            cache: Read and extended in place.
            lengths: With a cache, how many of the S positions of each row are real,
                int64 [B]; all when not given.
            select: Positions to score, indices into the flattened B * S, int64 [N];
                the rest skip the projection to the vocabulary.

        Returns:
            Logits, float [B, S, V], or [N, V] with ``select``.

        Raises:
            InputError: More positions than ``config.max_positions`` or the cache's capacity.
        """
        context = self._context(ids, segment_ids, cache)
        x = self.model.embed_tokens(ids)
        x = _dropout(x, self.config.dropout) if self.training else x
        last = len(self.model.layers) - 1
        for index, layer in enumerate(self.model.layers):
            # After the last attention only what is asked for goes on.
            x = layer(x, context, select if index == last else None)
        if cache is not None:
            rows = ids.new_full((ids.shape[0],), ids.shape[1]) if lengths is None else lengths
            cache.advance(rows)
        x = self.model.norm(x)
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(x, head.weight)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache of this model's shape, on its device."""
        weight = self.model.embed_tokens.weight
        return KVCache(
            num_layers=self.config.num_layers,
            batch_size=batch_size,
            num_kv_heads=self.config.num_kv_heads,
            capacity=capacity,
            head_dim=self.config.head_dim,
            device=weight.device,
            dtype=weight.dtype,
        )

    @torch.no_grad()
    def init_unit_embeddings(self, features: Tensor, seed: int = 0) -> None:
        """Start the units, the last ids of the vocabulary, where similar ones are near.

        What is learnt of one unit then holds for its neighbours from the start, which is what
        carries over to voices that were never heard.

        Args:
            features: What each unit sounds like, float32 [V_units, D].
            seed: Of the random projection from D to ``model_dim``.

        Raises:
            InputError: More features than the vocabulary has ids, or not a matrix.
        """
        if features.ndim != 2 or not 2 <= len(features) <= self.config.vocab_size:
            raise InputError(
                f"expected unit features [units, D] for at most {self.config.vocab_size} units, "
                f"got {list(features.shape)}"
            )
        generator = torch.Generator().manual_seed(seed)
        projection = torch.randn(features.shape[1], self.config.model_dim, generator=generator)
        centred = features.float().cpu() - features.float().cpu().mean(dim=0)
        embedded = centred @ projection
        std = INIT_STD if self.config.tie_embeddings else ACOUSTIC_STD
        embedded = embedded * (std / embedded.std().clamp_min(1e-12))
        weight = self.model.embed_tokens.weight
        weight.mul_(std / INIT_STD)  # so that controls weigh what units weigh
        weight[-len(features) :] = embedded.to(weight)

    def _context(self, ids: Tensor, segment_ids: Tensor | None, cache: KVCache | None) -> _Context:
        count = ids.shape[1]
        mask = slots = None
        if cache is not None:
            if segment_ids is not None:
                raise InputError("expected a cache or segment_ids, got both")
            positions = slots = cache.positions(count)
            longest = int(positions.max()) + 1
            if longest > cache.capacity:
                raise InputError(
                    f"expected at most {cache.capacity} positions in the cache, got {longest}"
                )
            keys = torch.arange(longest, device=ids.device)
            mask = (keys <= positions[:, :, None])[:, None]
        elif segment_ids is not None:
            index = torch.arange(count, device=ids.device)
            starts = torch.ones_like(segment_ids, dtype=torch.bool)
            starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
            positions = index - (index * starts).cummax(dim=1).values
            same = segment_ids[:, :, None] == segment_ids[:, None, :]
            mask = (same & (index <= index[:, None]))[:, None]
            longest = 0  # documents are bounded, rows of several are not
        else:
            positions = torch.arange(count, device=ids.device)[None]
            longest = count
        if longest > self.config.max_positions:
            raise InputError(
                f"expected at most {self.config.max_positions} positions "
                f"(model.max_positions), got {longest}"
            )
        half = torch.arange(0, self.config.head_dim, 2, device=ids.device).float()
        frequencies = 1.0 / self.config.rope_theta ** (half / self.config.head_dim)
        angles = positions[:, None, :, None].float() * frequencies
        dtype = _compute_dtype(self.model.embed_tokens.weight)
        return _Context(
            cos=angles.cos().to(dtype),
            sin=angles.sin().to(dtype),
            mask=mask,
            positions=slots,
            cache=cache,
        )


def _rotate(x: Tensor, context: _Context) -> Tensor:
    """Turn each pair of dimensions, half a head apart, by an angle that grows with position."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = context.cos, context.sin
    turned_first = torch.addcmul(first * cos, second, sin, value=-1)
    turned_second = torch.addcmul(second * cos, first, sin)
    return torch.cat([turned_first, turned_second], dim=-1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention, float [B, heads, S, head_dim], without dropout: CPU kernels have none."""
    if q.device.type == "cpu" and q.dtype != torch.float32:
        # The kernel's backward pass takes half as long in float32 as in bfloat16.
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), attn_mask=mask, is_causal=mask is None
            ).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


def _dropout(x: Tensor, probability: float) -> Tensor:
    """Zero a share of ``x`` and scale up the rest."""
    if probability == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    # torch draws on one thread, some 6 ns a number: 16 random bits are enough for each, and
    # four such come from one draw.
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = bits < round(probability * 2**16) - 2**15
    return torch.where(dropped, 0.0, x / (1 - probability))


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of ``x`` are computed in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
