"""The depth transformer: a small decoder over the streams of one position.

The body makes one state of each position; from it, and from the streams already chosen, each
next stream is predicted. It is made of the body's own layers. Two ways to run give the same
scores: all frames and streams at once (:meth:`DepthTransformer.forward`, for training and
scoring) and stream by stream (:meth:`DepthTransformer.begin`, then
:meth:`DepthTransformer.step`, for generation).

A stream holds few of the joint vocabulary's ids. Heads and embeddings know only those, so an
id here is its index in the row's ``row_ids``.

Sources:
    RQ-Transformer: Lee et al. 2022, arXiv:2203.01941. Own weights for every step: Moshi,
    Défossez et al. 2024, arXiv:2410.00037. Shared ones: CSM, Sesame 2025,
    github.com/SesameAILabs/csm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechlm.errors import ConfigError, InputError
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Context, DecoderLayer, attend, make_norm
from speechlm.model.norm import compute_dtype
from speechlm.model.rotary import rotary_table

NOWHERE = Context(cos=None, sin=None, mask=None, cache=None)
"""Streams without positions: their order is in the weights."""


class DepthStep(nn.Module):
    """The weights that a step reads besides its head and embedding."""

    def __init__(self, layer_config: DecoderConfig, body_dim: int, last_norm: bool) -> None:
        super().__init__()
        self.input_proj = nn.Linear(body_dim, layer_config.model_dim, bias=False)
        self.layers = nn.ModuleList(
            DecoderLayer(layer_config, layer) for layer in range(layer_config.num_layers)
        )
        self.norm = make_norm(layer_config) if last_norm else nn.Identity()

    def blocks(self) -> list[DecoderLayer]:
        """The layers, by their type."""
        return cast(list[DecoderLayer], list(self.layers))


@dataclass(kw_only=True, slots=True, eq=False)
class DepthState:
    """N frames being predicted side by side, and what their streams so far left behind."""

    hidden: Tensor
    """The body's states, float [N, D]."""
    row_ids: Sequence[Tensor]
    table: Tensor
    """The body's embedding, float [V, D]."""
    memory: list[tuple[Tensor, Tensor]]
    """Keys and values of each layer, float [positions, N, kv_heads, 1, head_dim]."""
    row: int
    """The stream that comes next."""
    position: int = 0
    """Positions read so far."""


class DepthTransformer(nn.Module):
    """Predicts stream r of a position from the body's state and the streams before r.

    Raises:
        ConfigError: ``row_sizes`` are not set.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        depth = config.depth
        if depth is None or not depth.row_sizes:
            raise ConfigError(
                "expected depth.row_sizes, the ids that each stream may hold, got none; "
                "DepthConfig.of takes them from a layout"
            )
        self.config = depth
        self.first_row = int(depth.first_from_body)
        """The first stream that is predicted here."""
        num_rows = len(depth.row_sizes)
        # The body's state is a position of its own, or is added to the others.
        self.num_positions = num_rows - (0 if depth.shared_embeddings else self.first_row)
        if num_rows == self.first_row:
            self.num_positions = 0  # a single stream, and it is the body's
        layer_config = DecoderConfig(
            vocab_size=1,
            num_layers=depth.num_layers,
            model_dim=depth.dim,
            num_heads=depth.num_heads,
            num_kv_heads=depth.num_kv_heads,
            head_dim=depth.head_dim,
            ffn_dim=depth.ffn_dim,
            norm_eps=depth.norm_eps,
            dropout=0.0,
            position="rope" if depth.rope else "none",
        )
        num_steps = self.num_positions if depth.per_step_weights else min(self.num_positions, 1)
        self.steps = nn.ModuleList(
            DepthStep(layer_config, config.model_dim, depth.last_norm) for _ in range(num_steps)
        )
        self.heads = nn.ModuleList(
            nn.Linear(depth.dim, size, bias=False) for size in depth.row_sizes[self.first_row :]
        )
        self.embeddings = nn.ModuleList(
            # The last stream is never read.
            nn.Embedding(size, depth.dim)
            for size in ([] if depth.shared_embeddings else depth.row_sizes[:-1])
        )

    def check(self, row_ids: Sequence[Tensor]) -> None:
        """Refuse rows that this was not made for.

        Raises:
            InputError: Another number of rows, or of ids in one.
        """
        sizes = tuple(len(ids) for ids in row_ids)
        if sizes != self.config.row_sizes:
            raise InputError(
                f"expected {len(self.config.row_sizes)} rows of {self.config.row_sizes} ids, as "
                f"the depth transformer was made for, got {len(sizes)} rows of {sizes}"
            )

    def forward(
        self, hidden: Tensor, local: Tensor, row_ids: Sequence[Tensor], table: Tensor
    ) -> list[Tensor]:
        """Score every stream of whole frames.

        Args:
            hidden: The body's states, float [N, D].
            local: What the frames hold, int64 [N, R], each an index in its row's ids.
            row_ids: The ids that each row may hold, R tensors int64 [V_r].
            table: The body's embedding, float [V, D].

        Returns:
            Logits of the rows from :attr:`first_row` on, float [N, V_r] each.
        """
        if not self.heads:
            return []
        rows = local.T
        if self.config.shared_embeddings:
            read = [F.embedding(row_ids[r][rows[r]], table) for r in range(len(rows) - 1)]
            x = self._step(0).input_proj(torch.stack([hidden, *read], dim=1))
            states = self._layers_at_once(x)[self.first_row :]
        else:
            inputs = [self._input(hidden, r, rows[r - 1]) for r in range(self.first_row, len(rows))]
            if self.config.per_step_weights:
                states = self._layers_of_steps(inputs)
            else:
                states = self._layers_at_once(torch.stack(inputs, dim=1))
        return [head(state) for head, state in zip(self.heads, states, strict=True)]

    def begin(self, hidden: Tensor, row_ids: Sequence[Tensor], table: Tensor) -> DepthState:
        """Start on N frames, of which no stream is chosen yet, or the body's own.

        Args:
            hidden: The body's states, float [N, D].
            row_ids: The ids that each row may hold, on the same device.
            table: The body's embedding, float [V, D].
        """
        config = self.config
        shape = (len(hidden), config.num_kv_heads, 1, config.head_dim)
        memory = torch.empty(
            (2, config.num_layers, self.num_positions, *shape),
            device=hidden.device,
            dtype=compute_dtype(hidden),
        )
        return DepthState(
            hidden=hidden,
            row_ids=row_ids,
            table=table,
            memory=list(zip(*(part.unbind() for part in memory), strict=True)),
            row=self.first_row,
        )

    def step(self, state: DepthState, previous: Tensor | None = None) -> Tensor:
        """Score the next stream. Without gradients.

        Args:
            state: Moves on to the stream after.
            previous: What the stream before holds, int64 [N], indices in its row's ids;
                None before stream 0.

        Returns:
            Logits, float [N, V_r].
        """
        row = state.row
        step = self._step(row)
        if not self.config.shared_embeddings:
            x = self._input(state.hidden, row, previous)[:, None]
        else:
            new = [state.hidden] if state.position == 0 else []
            if previous is not None:
                new.append(F.embedding(state.row_ids[row - 1][previous], state.table))
            x = step.input_proj(torch.stack(new, dim=1))
        context = self._positions(state.position, x.shape[1], state.hidden)
        seen = state.position + x.shape[1]
        for layer, (keys, values) in zip(step.blocks(), state.memory, strict=True):
            q, k, v = layer.project(x, context)
            keys[state.position : seen] = k.transpose(0, 1)[..., None, :]
            values[state.position : seen] = v.transpose(0, 1)[..., None, :]
            if x.shape[1] > 1:  # the body's state and stream 0, before anything else
                attended = attend(q, k, v, None)
            else:
                attended = _attend_few(q, keys[:seen], values[:seen])
            x = layer.finish(x, attended.flatten(2))
        state.position = seen
        state.row += 1
        scores: Tensor = self.heads[row - self.first_row](step.norm(x[:, -1]))
        return scores

    def _step(self, row: int) -> DepthStep:
        """The weights that predict a row."""
        index = row - self.first_row if self.config.per_step_weights else 0
        return cast(DepthStep, self.steps[index])

    def _input(self, hidden: Tensor, row: int, previous: Tensor | None) -> Tensor:
        """The body's state, and the stream before where there is one: float [N, dim]."""
        x: Tensor = self._step(row).input_proj(hidden)
        return x if row == 0 else x + self.embeddings[row - 1](previous)

    def _positions(self, start: int, count: int, like: Tensor) -> Context:
        if not self.config.rope:
            return NOWHERE
        table = rotary_table(
            self.config.head_dim,
            self.config.rope_theta,
            self.config.rope_scaling,
            self.num_positions,
            like.device,
            compute_dtype(like),
        )
        cos, sin = (part[None, start : start + count, None] for part in table)
        return Context(cos=cos, sin=sin, mask=None, cache=None)

    def _layers_at_once(self, x: Tensor) -> list[Tensor]:
        """Streams [N, P, dim] through the same weights, as P states [N, dim]."""
        step = self._step(0)
        context = self._positions(0, x.shape[1], x)
        for layer in step.blocks():
            x = layer(x, context)
        return list(step.norm(x).unbind(dim=1))

    def _layers_of_steps(self, inputs: list[Tensor]) -> list[Tensor]:
        """Each of P streams [N, dim] through its step's weights; they meet in attention."""
        xs = inputs
        steps = [self._step(self.first_row + index) for index in range(len(xs))]
        contexts = [self._positions(index, 1, xs[index]) for index in range(len(xs))]
        for index in range(self.config.num_layers):
            layers = [step.blocks()[index] for step in steps]
            heads = [
                layer.project(x[:, None], context)
                for layer, x, context in zip(layers, xs, contexts, strict=True)
            ]
            q, k, v = (torch.cat(parts, dim=1) for parts in zip(*heads, strict=True))
            attended = attend(q, k, v, None).flatten(2).unbind(dim=1)
            xs = [
                layer.finish(x, heads) for layer, x, heads in zip(layers, xs, attended, strict=True)
            ]
        return [step.norm(x) for step, x in zip(steps, xs, strict=True)]


def _attend_few(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query a frame over its few keys, which sums do faster than an attention kernel.

    Args:
        q: float [N, 1, heads, head_dim].
        keys: float [P, N, kv_heads, 1, head_dim].
        values: The same.

    Returns:
        float [N, 1, heads, head_dim].
    """
    q = q.reshape(*keys.shape[1:3], -1, keys.shape[-1])  # [N, kv_heads, group, head_dim]
    scores = (keys * q).sum(dim=-1, keepdim=True) * keys.shape[-1] ** -0.5
    attended: Tensor = (scores.softmax(dim=0) * values).sum(dim=0)
    return attended.flatten(1, 2)[:, None]
