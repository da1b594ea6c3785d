"""Continuations of prompts: many at once, or one as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from speechlm.config import SamplingConfig
from speechlm.errors import InputError
from speechlm.generation.engine import Engine
from speechlm.generation.request import MAX_BATCH, Request, check_request, positions_for
from speechlm.layouts.grid import Prompt
from speechlm.model.fast_linear import Weights
from speechlm.model.unit_lm import UnitLM


def generate(
    lm: UnitLM,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    *,
    unconditioned: Prompt | None = None,
    weights: Weights = "float32",
) -> list[Tensor]:
    """Continue every prompt until the end of its sequence.

    A prompt's output is the same alone and in any batch: it depends on nothing but the LM,
    the prompt, the sampling and the seed.

    Args:
        lm: The LM, on whatever device.
        prompts: As its layout makes them.
        sampling: How to draw; ``max_units`` bounds each output, as does ``max_positions``.
        seeds: One a prompt.
        unconditioned: What ``sampling.guidance`` leads away from.
        weights: ``bfloat16`` or ``int8`` for speed; with bfloat16 a near tie may fall otherwise
            in another batch.

    Returns:
        The columns drawn, int64 [R, n] each, on the CPU, the one that ends it included;
        ``lm.layout.read`` takes them.

    Raises:
        InputError: A prompt is empty or leaves no room within ``max_positions``, or there
            is not one seed a prompt.
    """
    if len(prompts) != len(seeds):
        raise InputError(f"expected one seed a prompt, got {len(prompts)} and {len(seeds)}")
    requests = [
        Request(prompt=prompt, sampling=sampling, seeds=(seed,), unconditioned=unconditioned)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    for request in requests:
        check_request(lm, request)  # before any work is done for the others
    engine = Engine(
        lm, num_positions=positions_for(lm, requests), max_batch=MAX_BATCH, weights=weights
    )
    outputs: dict[int, list[tuple[int, ...]]] = {}
    for request in requests:
        (ticket,) = engine.add(request)
        outputs[ticket] = []
    while engine.busy:
        for drawn in engine.step():
            outputs[drawn.ticket].append(drawn.column)
    rows = lm.layout.num_rows
    return [
        torch.tensor(columns, dtype=torch.int64).reshape(-1, rows).T for columns in outputs.values()
    ]


def generate_stream(
    lm: UnitLM,
    prompt: Prompt,
    sampling: SamplingConfig,
    seed: int,
    *,
    unconditioned: Prompt | None = None,
    weights: Weights = "float32",
) -> Iterator[tuple[int, ...]]:
    """Give the columns that :func:`generate` would, each as soon as it is drawn.

    Raises:
        InputError: The prompt is empty or leaves no room within ``max_positions``.
    """
    request = Request(prompt=prompt, sampling=sampling, seeds=(seed,), unconditioned=unconditioned)
    check_request(lm, request)
    engine = Engine(lm, num_positions=positions_for(lm, [request]), weights=weights)
    return engine.run(request)
