"""What an engine is asked for, whether it can be given, and how much of the cache it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speechlm.config import SamplingConfig
from speechlm.errors import InputError
from speechlm.layouts.grid import Prompt
from speechlm.model.cache import BLOCK
from speechlm.model.unit_lm import UnitLM

MAX_BATCH = 64
"""Sequences decoded at once."""
SINKS = 4
"""First positions that a full context never forgets."""
CACHE_BYTES = 2**30
"""Memory of keys and values that :func:`positions_for` does not go beyond."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Request:
    """What to continue, and how."""

    prompt: Prompt
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seeds: tuple[int, ...] = (0,)
    """One a sample; the prompt is read once for all of them."""
    unconditioned: Prompt | None = None
    """What guidance leads away from; needed when ``sampling.guidance`` is not 1."""
    stop: tuple[tuple[int, ...], ...] = ()
    """Runs of ids in row 0 that end a sample once they have come."""
    num_live_rows: int = 0
    """So many of the last rows are told as time goes on, by :meth:`Engine.give`: what the layout
    expects there is not drawn. A layout says how many: ``num_live_rows``."""
    endless: bool = False
    """Never draw the end: what was asked for lasts until it is cancelled, or ``max_units``."""


def check_request(lm: UnitLM, request: Request) -> None:
    """Refuse what no engine of the LM can do.

    Raises:
        InputError: As :func:`check_prompt` does, of either prompt; guidance lacks its prompt; or
            there is no seed, or one that is no number of 64 bits.
    """
    if request.sampling.guidance != 1 and request.unconditioned is None:
        raise InputError(
            f"guidance {request.sampling.guidance} needs an unconditioned prompt, got none"
        )
    for prompt in prompts_of(request):
        check_prompt(lm, prompt, window=request.sampling.window)
    if not 0 <= request.num_live_rows < lm.layout.num_rows:
        raise InputError(
            f"expected fewer live rows than the {lm.layout.num_rows} of the layout "
            f"{lm.layout.name!r}, got {request.num_live_rows}"
        )
    if request.num_live_rows and request.sampling.guidance != 1:
        raise InputError(
            f"expected guidance 1 beside live rows, got {request.sampling.guidance}: what comes "
            "live has no prompt to lead away from"
        )
    if request.num_live_rows and request.stop:
        raise InputError("expected no runs to stop at beside live rows, got some")
    if not request.seeds or not all(-(2**63) <= seed < 2**64 for seed in request.seeds):
        raise InputError(
            f"expected a seed a sample, whole numbers of 64 bits, got {list(request.seeds)}"
        )


def check_prompt(lm: UnitLM, prompt: Prompt, *, window: int = 0) -> None:
    """Refuse a prompt that the LM cannot go on from.

    Raises:
        InputError: Other rows than the layout's, ids outside of the vocabulary, empty, or no room
            within the context.
    """
    limit = lm.decoder.config.max_positions
    rows = lm.layout.num_rows
    if prompt.ids.ndim != 2 or prompt.ids.shape[0] != rows:
        raise InputError(
            f"expected a prompt [{rows}, S], as the layout {lm.layout.name!r} has rows, "
            f"got {list(prompt.ids.shape)}"
        )
    if bool(((prompt.ids < 0) | (prompt.ids >= lm.vocabulary.size)).any()):
        raise InputError(f"expected ids in 0..{lm.vocabulary.size - 1} in a prompt, got others")
    said = f"model.max_positions is {limit}"
    if window:
        if lm.decoder.config.position not in ("rope", "none"):
            raise InputError(
                "a window that moves needs rotary positions, the LM has "
                f"{lm.decoder.config.position} ones; set generate.window=0"
            )
        limit, said = min((window, f"the window is {window}"), (limit, said))
        if limit < 4 * SINKS:
            raise InputError(f"expected a window of at least {4 * SINKS} positions, got {window}")
    if not 1 <= len(prompt) < limit:
        raise InputError(
            f"expected a prompt of 1 to {limit - 1} LM positions ({said}), got {len(prompt)}; "
            "give a shorter recording"
        )


def check_cells(cells: Tensor, row_ids: Sequence[Tensor]) -> None:
    """Refuse live cells that are not int64 [L, n], each of the ids of its row.

    Raises:
        InputError: In one line.
    """
    if cells.ndim != 2 or cells.dtype != torch.int64 or len(cells) != len(row_ids):
        raise InputError(
            f"expected live cells int64 [{len(row_ids)}, n], got {cells.dtype} {list(cells.shape)}"
        )
    for ids, row in zip(row_ids, cells, strict=True):
        wrong = row[~torch.isin(row, ids.cpu())]
        if len(wrong):
            raise InputError(
                f"expected live cells of their row's ids, up to {int(ids[-1])}, got {int(wrong[0])}"
            )


def capacity_of(lm: UnitLM, prompt: Prompt, sampling: SamplingConfig) -> int:
    """LM positions that a prompt and its continuation fill at most, in whole blocks."""
    limit = lm.decoder.config.max_positions
    limit = min(sampling.window, limit) if sampling.window else limit
    return -(-min(len(prompt) + sampling.max_units, limit) // BLOCK) * BLOCK


def positions_of(lm: UnitLM, request: Request) -> int:
    """LM positions that all samples of a request fill at most."""
    prompts = prompts_of(request)
    a_sample = sum(capacity_of(lm, prompt, request.sampling) for prompt in prompts)
    return a_sample * len(request.seeds)


def positions_for(lm: UnitLM, requests: Sequence[Request], max_batch: int = MAX_BATCH) -> int:
    """A cache for the largest requests that may run at once, within :data:`CACHE_BYTES`."""
    sizes = [positions_of(lm, request) for request in requests]
    config = lm.decoder.config
    a_position = 8 * config.num_layers * config.num_kv_heads * config.head_dim
    wanted = sum(sorted(sizes)[-max_batch:])
    return max(min(wanted, CACHE_BYTES // a_position), max(sizes, default=0))


def prompts_of(request: Request) -> list[Prompt]:
    """The prompt, and the other one where guidance leads away from it."""
    if request.sampling.guidance == 1 or request.unconditioned is None:
        return [request.prompt]
    return [request.prompt, request.unconditioned]
