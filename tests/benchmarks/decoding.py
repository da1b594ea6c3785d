"""One request, decoded greedily on a CPU: the engine and transformers' `generate`.

The speed of decoding is bounded by how fast weights are read, so the distance to that is
printed. What int8 and bfloat16 weights lose is measured as likelihood on text that the float32
LM spoke itself: the loss is then the divergence between the two LMs, in nats a unit.
"""

from __future__ import annotations

import copy
import statistics
from functools import partial
from typing import Any

import torch
from bench import Benchmark, Row, in_turns, read_rate, start
from qwen import QUICK, SMALL, continue_with_transformers, make_pair, random_prompt, weights_read
from torch import Tensor

from speechlm.config import SamplingConfig
from speechlm.generation.generate import generate
from speechlm.layouts.grid import LMSequence
from speechlm.model.fast_linear import Weights
from speechlm.model.likelihood import score
from speechlm.model.unit_lm import UnitLM

KINDS: tuple[Weights, ...] = ("float32", "bfloat16", "int8")
TARGETS = {"float32": 1.3, "int8": 4.0}
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
PROMPT_COLUMNS, NEW_COLUMNS = 75, 120


def main(words: list[str] | None = None) -> None:
    bench = start("decoding", "batch 1, greedy, against transformers' generate", words, __doc__)
    # Two sizes: int8 weights of the smaller fit beside all else into 32 MB of cache.
    for shape in (QUICK,) if bench.args.quick else (SMALL, SMALL | {"num_hidden_layers": 8}):
        compare(bench, shape)
    bench.notes += [
        f"prompt of {PROMPT_COLUMNS} columns, {NEW_COLUMNS} units; prefill is part of the time; "
        "int8 has no peer in transformers itself",
        "the ceiling is what reading as many bytes takes here, caches included",
    ]
    bench.finish()


def compare(bench: Benchmark, shape: dict[str, Any]) -> None:
    quick, args = bench.args.quick, bench.args
    count = 8 if quick else NEW_COLUMNS
    model, lm = make_pair(shape)
    half = copy.deepcopy(model).bfloat16()
    prompt = random_prompt(lm, 10 if quick else PROMPT_COLUMNS, torch.Generator().manual_seed(1))
    sampling = SamplingConfig(max_units=count)

    def ours(weights: Weights) -> Tensor:
        return generate(lm, [prompt], sampling, [0], weights=weights)[0][0]

    theirs = partial(continue_with_transformers, model, prompt.ids, count)
    contenders = {kind: partial(ours, kind) for kind in KINDS}
    contenders["transformers"] = theirs
    contenders["transformers bfloat16"] = partial(
        continue_with_transformers, half, prompt.ids, count
    )
    expected = theirs()[0]
    spoken = {kind: ours(kind) for kind in KINDS}
    assert torch.equal(spoken["float32"], expected), "greedy ids differ in float32"

    times = in_turns(contenders, args.pairs)
    losses = likelihood_losses(lm, 1 if quick else 8, 32 if quick else 256)
    num_weights = weights_read(lm)
    size = f"{num_weights / 1e6:.0f} M"
    for kind in KINDS:
        same = int((spoken[kind] == expected).long().cumprod(0).sum())
        bench.compare(
            f"{size}: {kind} against float32",
            times,
            kind,
            "transformers",
            amount=count,
            unit="ms/unit",
            target=TARGETS.get(kind),
            note=f"first {same} of {count} ids equal",
        )
    bench.compare(
        f"{size}: bfloat16 against bfloat16",
        times,
        "bfloat16",
        "transformers bfloat16",
        amount=count,
        unit="ms/unit",
    )
    for kind in KINDS:
        a_unit = statistics.median(times[kind]) / count
        num_bytes = num_weights * BYTES[kind]
        rate = read_rate(num_bytes)
        bench.add(
            Row(
                what=f"{size}: {kind}, of the bandwidth ceiling",
                value=100 * num_bytes / rate / a_unit,
                unit="%",
                ours=f"{num_bytes / a_unit / 1e9:.1f} GB/s",
                theirs=f"{rate / 1e9:.1f} GB/s",
                note=f"{num_bytes / 1e6:.0f} MB of weights a unit",
            )
        )
    for kind, loss in losses.items():
        bench.add(Row(what=f"{size}: {kind}, loss in likelihood", value=loss, unit="nats/unit"))


def likelihood_losses(lm: UnitLM, batch: int, length: int) -> dict[str, float]:
    """What other weights lose in likelihood on what the float32 LM speaks, nats a unit."""
    generator = torch.Generator().manual_seed(2)
    prompts = [random_prompt(lm, 8, generator) for _ in range(batch)]
    sampling = SamplingConfig(temperature=1.0, max_units=length)
    outputs = generate(lm, prompts, sampling, list(range(batch)))
    ids = [torch.cat([p.ids, o], dim=1) for p, o in zip(prompts, outputs, strict=True)]
    spoken = [LMSequence(ids=one, loss_weights=torch.ones(one.shape)) for one in ids]
    means = {}
    for kind in KINDS:
        found = score(lm, spoken, weights=kind)
        means[kind] = sum(one.total for one in found) / sum(one.num_units for one in found)
    return {kind: means["float32"] - means[kind] for kind in ("bfloat16", "int8")}


if __name__ == "__main__":
    main()
