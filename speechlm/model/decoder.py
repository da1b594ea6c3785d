"""The unit LM's network: a decoder-only Transformer, read top to bottom.

By default Llama's: RMSNorm before each block, rotary positions, grouped-query attention and
SwiGLU. The switches of :class:`DecoderConfig` make it Mistral's, Qwen's, OPT's or GPT-NeoX's.
Parameters are named as in Hugging Face's ``LlamaForCausalLM``.

A position may hold several streams (a column of ``R`` ids): it is read as the sum of their
embeddings. All streams share one table and one output matrix over the joint vocabulary; a
stream's own head is the rows of that matrix which are its ids.

Sources:
    Llama: Touvron et al. 2023, arXiv:2302.13971. Grouped queries: Ainslie et al. 2023,
    arXiv:2305.13245. SwiGLU: Shazeer 2020, arXiv:2002.05202. RMSNorm: Zhang and Sennrich
    2019, arXiv:1910.07467. OPT: Zhang et al. 2022, arXiv:2205.01068. GPT-NeoX: Black et al.
    2022, arXiv:2204.06745. Summed streams: Copet et al. 2023, arXiv:2306.05284.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechlm.errors import InputError
from speechlm.model.architecture import DecoderConfig
from speechlm.model.cache import CacheStep
from speechlm.model.norm import RMSNorm, compute_dtype
from speechlm.model.rotary import rotary_table, rotate

if TYPE_CHECKING:
    from speechlm.model.depth import DepthTransformer

INIT_STD = 0.02
ACOUSTIC_STD = 0.2
"""Of unit embeddings that start from what units sound like, where they are not the head too:
large beside a step of the optimizer, or training would soon undo their order."""


def make_norm(config: DecoderConfig) -> nn.Module:
    """The norm before a block, and the last one."""
    if config.norm == "rms":
        return RMSNorm(config.model_dim, config.norm_eps)
    return nn.LayerNorm(config.model_dim, config.norm_eps)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Context:
    """What every layer needs to know of the positions at hand."""

    cos: Tensor | None
    """float [B or 1, S, 1, rotary_dim]; None without rotary positions."""
    sin: Tensor | None
    mask: Tensor | None
    """Which key each query sees, bool [B, 1, S, S]; None for plainly causal."""
    cache: CacheStep | None


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        q_dim = config.num_heads * config.head_dim
        kv_dim = config.num_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.q_proj = nn.Linear(config.model_dim, q_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.model_dim, kv_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.model_dim, kv_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_dim, config.model_dim, bias=config.o_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def project(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, float [B, S, heads, head_dim], turned."""
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return turn(q, context), turn(k, context), v


class FeedForward(nn.Module):
    """The feed-forward block: SwiGLU, or two plain layers."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        bias = config.mlp_bias
        self.activation = config.activation
        self.gate_proj = (
            nn.Linear(config.model_dim, config.ffn_dim, bias=bias) if config.gated else None
        )
        self.up_proj = nn.Linear(config.model_dim, config.ffn_dim, bias=bias)
        self.down_proj = nn.Linear(config.ffn_dim, config.model_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is not None:
            inner = activate(self.gate_proj(x), self.activation) * self.up_proj(x)
        else:
            inner = activate(self.up_proj(x), self.activation)
        output: Tensor = self.down_proj(inner)
        return output


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each on a normalised input and added to it."""

    def __init__(self, config: DecoderConfig, number: int) -> None:
        super().__init__()
        self.number = number
        self.dropout = config.dropout
        self.parallel = config.parallel_residual
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, context: Context, select: Tensor | None = None) -> Tensor:
        q, k, v = self.project(x, context)
        if context.cache is not None:
            heads = context.cache.attend(self.number, q[0], k[0], v[0])[None]
        else:
            heads = attend(q, k, v, context.mask).flatten(2)
        return self.finish(x, heads, select)

    def project(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of what is read, float [B, S, heads, head_dim], turned."""
        return self.self_attn.project(self.input_layernorm(x), context)

    def finish(self, x: Tensor, heads: Tensor, select: Tensor | None = None) -> Tensor:
        """What becomes of the input and of what each head found in it.

        Args:
            x: float [..., model_dim].
            heads: float [..., heads * head_dim].
            select: As :meth:`Decoder.hidden` takes it.
        """
        attended = x + self._drop(self.self_attn.o_proj(heads))
        if select is not None:
            x, attended = x.flatten(0, 1)[select], attended.flatten(0, 1)[select]
        read = x if self.parallel else attended
        return attended + self._drop(self.mlp(self.post_attention_layernorm(read)))

    def _drop(self, x: Tensor) -> Tensor:
        return _dropout(x, self.dropout) if self.training else x


class DecoderStack(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.model_dim)
        self.embed_positions = (
            nn.Embedding(config.max_positions + config.position_offset, config.model_dim)
            if config.position == "learned"
            else None
        )
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer) for layer in range(config.num_layers)
        )
        self.norm = make_norm(config)


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
        self.depth: DepthTransformer | None = None
        """Predicts the streams of a position one after another, where there is one."""
        if config.depth is not None:
            from speechlm.model.depth import DepthTransformer  # made of this file's layers

            self.depth = DepthTransformer(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights from torch's global generator."""
        narrow = INIT_STD / (2 * self.config.num_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                # What is added to the residual stream stays small however deep the model is.
                added = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=narrow if added else INIT_STD)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def forward(
        self,
        ids: Tensor,
        *,
        segment_ids: Tensor | None = None,
        select: Tensor | None = None,
        cache: CacheStep | None = None,
    ) -> Tensor:
        """Score what comes after each position.

        Args:
            ids: int64 [B, S], or [B, R, S] of R streams.
            segment_ids: Which document each position belongs to, int64 [B, S]; a document's
                positions are neighbours. None when a row is one document.
            select: Positions to score, indices into the flattened B * S, int64 [N];
                the rest skip the projection to the vocabulary.
            cache: The next positions of several sequences, one after another: B is 1.

        Returns:
            Logits, float [B, S, V], or [N, V] with ``select``.

        Raises:
            InputError: More positions than ``config.max_positions``.
        """
        return self.logits(self.hidden(ids, segment_ids=segment_ids, select=select, cache=cache))

    def hidden(
        self,
        ids: Tensor,
        *,
        segment_ids: Tensor | None = None,
        select: Tensor | None = None,
        cache: CacheStep | None = None,
    ) -> Tensor:
        """What the layers make of each position, normed: float [B, S, D], or [N, D]."""
        context, positions = self._context(ids, segment_ids, cache)
        x = self._embed(ids, positions)
        x = _dropout(x, self.config.dropout) if self.training else x
        last = len(self.model.layers) - 1
        for index, layer in enumerate(self.model.layers):
            # After the last attention only what is asked for goes on.
            x = layer(x, context, select if index == last else None)
        normed: Tensor = self.model.norm(x)
        return normed.to(compute_dtype(x))

    def logits(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """Score every id, or some: float [..., D] to [..., V] or [..., len(ids)]."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        if ids is None and self.lm_head is not None:
            scores: Tensor = self.lm_head(hidden)
            return scores
        weight = head.weight if ids is None else head.weight[ids]
        return F.linear(hidden, weight)

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

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Read ids [B, S] or [B, R, S] as float [B, S, D]."""
        table = self.model.embed_tokens
        if ids.ndim == 2:
            x: Tensor = table(ids)
        elif ids.shape[1] == 1:
            x = table(ids[:, 0])
        else:
            columns = ids.transpose(1, 2).reshape(-1, ids.shape[1])
            x = F.embedding_bag(columns, table.weight, mode="sum")
            x = x.view(ids.shape[0], ids.shape[2], -1)
        if self.config.embed_scale != 1:
            x = x * self.config.embed_scale
        if self.model.embed_positions is not None:
            x = x + self.model.embed_positions(positions + self.config.position_offset)
        elif self.config.position == "sinusoidal":
            x = x + _sinusoids(positions, self.config.model_dim).to(x.dtype)
        return x

    def _context(
        self, ids: Tensor, segment_ids: Tensor | None, cache: CacheStep | None
    ) -> tuple[Context, Tensor]:
        count = ids.shape[-1]
        longest = count
        mask = None
        if cache is None:
            index = torch.arange(count, device=ids.device)
        if cache is not None:
            if segment_ids is not None:
                raise InputError("expected a cache or segment_ids, got both")
            positions = cache.positions[None]
            longest = cache.longest
        elif segment_ids is not None:
            starts = torch.ones_like(segment_ids, dtype=torch.bool)
            starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
            positions = index - (index * starts).cummax(dim=1).values
            same = segment_ids[:, :, None] == segment_ids[:, None, :]
            mask = (same & (index <= index[:, None]))[:, None]
            longest = int(positions.max()) + 1  # documents are bounded, rows of several are not
        else:
            positions = index[None]
        if longest > self.config.max_positions:
            raise InputError(
                f"expected at most {self.config.max_positions} positions "
                f"(model.max_positions), got {longest}"
            )
        window = self.config.sliding_window
        if cache is None and window is not None and longest > window:
            mask = (index <= index[:, None])[None, None] if mask is None else mask
            mask = mask & (index > index[:, None] - window)
        cos = sin = None
        if self.config.position == "rope":
            cos, sin = rotary_table(
                self.config.rotary_dim,
                self.config.rope_theta,
                self.config.rope_scaling,
                _table_length(longest),
                ids.device,
                compute_dtype(self.model.embed_tokens.weight),
            )
            cos, sin = cos[positions][:, :, None], sin[positions][:, :, None]
        return Context(cos=cos, sin=sin, mask=mask, cache=cache), positions


def turn(x: Tensor, context: Context) -> Tensor:
    if context.cos is None or context.sin is None:
        return x
    return rotate(x, context.cos, context.sin)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention, float [B, S, heads, head_dim], without dropout: CPU kernels have none."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    dtype, group = q.dtype, q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if q.device.type == "cpu" and dtype != torch.float32:
        # The kernel's backward pass takes half as long in float32 as in bfloat16.
        with torch.autocast("cpu", enabled=False):
            attended = F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), attn_mask=mask, is_causal=mask is None
            ).to(dtype)
    else:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return attended.transpose(1, 2)


def activate(x: Tensor, name: str) -> Tensor:
    if name == "silu":
        return F.silu(x)
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def _sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Fixed positions, cosines before sines: int64 [B, S] to float32 [B, S, dim]."""
    half = dim // 2
    steps = torch.arange(half, device=positions.device).float()
    angles = positions[..., None].float() * torch.exp(-math.log(10_000) / (half - 1) * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _table_length(longest: int) -> int:
    """Positions of a rotary table: a power of two, so that few tables are ever made."""
    return 1 << max(longest - 1, 63).bit_length()


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
