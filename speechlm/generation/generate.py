"""Units from the LM, one position at a time, in batches of unequal prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from speechlm.config import SamplingConfig
from speechlm.errors import InputError
from speechlm.generation.sampling import choose, seeded_noise
from speechlm.model.cache import KVCache
from speechlm.model.unit_lm import UnitLM

MAX_BATCH = 64
"""Prompts decoded at once, which bounds the memory of the cache."""


def generate(
    lm: UnitLM, prompts: Sequence[Tensor], sampling: SamplingConfig, seeds: Sequence[int]
) -> list[Tensor]:
    """Continue every prompt until the end of its sequence.

    A prompt's output is the same alone and in any batch: it depends on nothing but the LM,
    the prompt, the sampling and the seed.

    Args:
        lm: The LM, on whatever device.
        prompts: Ids, int64 [S] each, S >= 1.
        sampling: How to draw; ``max_units`` bounds each output, as does ``max_positions``.
        seeds: One a prompt.

    Returns:
        Ids of units, int64 [n] each, without the prompt and the end, on the CPU.

    Raises:
        InputError: A prompt is empty or leaves no room within ``max_positions``, or there
            is not one seed a prompt.
    """
    if len(prompts) != len(seeds):
        raise InputError(f"expected one seed a prompt, got {len(prompts)} and {len(seeds)}")
    for prompt in prompts:
        _check_prompt(lm, prompt)
    outputs: list[list[int]] = [[] for _ in prompts]
    # Prompts of similar length share a batch: less of the cache stays empty.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), MAX_BATCH):
        chosen = order[start : start + MAX_BATCH]
        drawn = _decode(lm, [prompts[i] for i in chosen], sampling, [seeds[i] for i in chosen])
        for step in drawn:
            for row, unit in step.items():
                outputs[chosen[row]].append(unit)
    return [torch.tensor(output, dtype=torch.int64) for output in outputs]


def generate_stream(
    lm: UnitLM, prompt: Tensor, sampling: SamplingConfig, seed: int
) -> Iterator[int]:
    """Give the ids that :func:`generate` would, each as soon as it is drawn.

    Raises:
        InputError: The prompt is empty or leaves no room within ``max_positions``.
    """
    _check_prompt(lm, prompt)
    return (step[0] for step in _decode(lm, [prompt], sampling, [seed]))


def _check_prompt(lm: UnitLM, prompt: Tensor) -> None:
    limit = lm.decoder.config.max_positions
    if prompt.ndim != 1 or not 1 <= len(prompt) < limit:
        raise InputError(
            f"expected a prompt of 1 to {limit - 1} LM positions (model.max_positions is {limit}), "
            f"got {prompt.shape[0] if prompt.ndim == 1 else list(prompt.shape)}; "
            "give a shorter recording"
        )


@torch.inference_mode()
def _step(lm: UnitLM, cache: KVCache, ids: Tensor, lengths: Tensor) -> Tensor:
    """Read ids int64 [B, S] and score what follows each row, float32 [B, V]."""
    rows = torch.arange(len(ids), device=ids.device)
    select = rows * ids.shape[1] + lengths - 1
    logits: Tensor = lm.decoder(ids, cache=cache, lengths=lengths, select=select)
    return logits.float()


def _decode(
    lm: UnitLM, prompts: Sequence[Tensor], sampling: SamplingConfig, seeds: Sequence[int]
) -> Iterator[dict[int, int]]:
    """Step a batch; give ``{row: unit}`` of the rows that drew a unit at each step."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=lm.device)
    longest = int(lengths.max())
    limit = lm.decoder.config.max_positions
    capacity = min(longest + sampling.max_units, limit)
    cache = lm.decoder.new_cache(len(prompts), capacity)
    ids = torch.full((len(prompts), longest), lm.vocabulary.pad, device=lm.device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt.to(lm.device)
    allowed = torch.zeros(lm.vocabulary.size, dtype=torch.bool, device=lm.device)
    allowed[lm.vocabulary.end] = True
    allowed[lm.vocabulary.first_unit :] = True

    rows = list(range(len(prompts)))
    sequences = [prompt.tolist() for prompt in prompts]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    logits = _step(lm, cache, ids, lengths)
    for count in range(1, sampling.max_units + 1):
        noise = None
        if sampling.temperature > 0:
            drawn = [seeded_noise(generators[row], lm.vocabulary.size) for row in rows]
            noise = torch.stack(drawn).to(lm.device)
        chosen, certain = choose(logits.masked_fill(~allowed, -torch.inf), sampling, noise)
        for index in (~certain).nonzero().flatten().tolist():
            alone = _score_alone(lm, sequences[rows[index]]).masked_fill(~allowed, -torch.inf)
            row_noise = None if noise is None else noise[index : index + 1]
            chosen[index] = choose(alone, sampling, row_noise)[0][0]
        units = chosen.tolist()
        step = {
            row: unit for row, unit in zip(rows, units, strict=True) if unit != lm.vocabulary.end
        }
        if step:
            yield step
        for row, unit in step.items():
            sequences[row].append(unit)
        # A row that reached max_positions has no slot left, however short the others are.
        going = [
            index for index, row in enumerate(rows) if row in step and len(sequences[row]) < limit
        ]
        if not going or count == sampling.max_units:
            return
        if len(going) < len(rows):
            cache.keep(torch.tensor(going, device=lm.device))
            chosen = chosen[going]
            rows = [rows[index] for index in going]
        logits = _step(lm, cache, chosen[:, None], torch.ones_like(chosen))


@torch.inference_mode()
def _score_alone(lm: UnitLM, sequence: list[int]) -> Tensor:
    """Score what follows one sequence, float32 [1, V], from nothing but itself."""
    ids = torch.tensor([sequence], device=lm.device)
    select = torch.tensor([len(sequence) - 1], device=lm.device)
    logits: Tensor = lm.decoder(ids, select=select)
    return logits.float()
