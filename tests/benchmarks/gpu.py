"""On a CUDA device: a text LM of half a billion weights, decoded and trained in bfloat16.

The shape is Qwen2.5-0.5B's, with 1000 units in its vocabulary. In the layout `flat` only units
and the end may come, so of the head no other rows are read here; `generate` reads all 152 k of
them. How much of the ratio is due to that shows in the row where neither knows any text.

A training step is what `speechlm train` does, without fairseq2: forward and backward under
autocast from float32 weights, the gradient's norm clipped, and fused AdamW.

Without a CUDA device this cannot run; `--quick` runs tiny shapes on the CPU all the same.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from functools import partial

import torch
from bench import Benchmark, Row, cannot_run, in_turns, matrix_rate, read_rate, start
from qwen import (
    NUM_UNITS,
    QUICK,
    continue_with_transformers,
    make_pair,
    random_prompt,
    weights_read,
)
from torch import Tensor

from speechlm.config import SamplingConfig
from speechlm.generation.generate import generate
from speechlm.model.fast_linear import Weights
from speechlm.model.unit_lm import UnitLM
from speechlm.training.batches import UnitBatch
from speechlm.training.headed import HeadedDecoder
from speechlm.training.objectives import next_column_objective

QWEN = dict(
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
    rope_theta=1e6,
)
TEXT_SIZE = 151_936
PROMPT_COLUMNS, NEW_COLUMNS = 75, 256
PACK, SEQUENCE = 4096, 1024
"""LM positions of a training step, and of each sequence in it."""
LARGE_MATRIX = 8192
DECODING_TARGET, BANDWIDTH_TARGET, TRAINING_TARGET = 5.0, 60.0, 45.0


def main(words: list[str] | None = None) -> None:
    bench = start("gpu", "0.5 B weights in bfloat16 on a CUDA device", words, __doc__)
    quick = bench.args.quick
    if not (torch.cuda.is_available() or quick):
        cannot_run("gpu: torch sees no CUDA device here; 'gpu.py --quick' shows that it runs")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, text_size = (QUICK, 100) if quick else (QWEN, TEXT_SIZE)
    decode(bench, f"beside {text_size} text tokens", shape, device, text_size, DECODING_TARGET)
    decode(bench, "without text", shape, device, 0, None)
    train(bench, shape, device, text_size)
    bench.finish()


def decode(
    bench: Benchmark,
    what: str,
    shape: dict[str, float],
    device: str,
    text_size: int,
    target: float | None,
) -> None:
    """Batch 1, greedy, in bfloat16; in float32 only to see that both say the same."""
    count = 8 if bench.args.quick else NEW_COLUMNS
    model, lm = make_pair(shape, device, text_size)
    prompt = random_prompt(lm, 10 if bench.args.quick else PROMPT_COLUMNS, torch.Generator())
    ids = prompt.ids.to(device)

    def ours(weights: Weights, number: int = count) -> Tensor:
        sampling = SamplingConfig(max_units=number)
        return generate(lm, [prompt], sampling, [0], weights=weights)[0][0]

    few = min(count, 32)
    expected = continue_with_transformers(model, ids, few)[0].cpu()
    assert torch.equal(ours("float32", few), expected), "greedy ids differ in float32"

    half = copy.deepcopy(model).bfloat16()
    del model
    theirs = partial(continue_with_transformers, half, ids, count)
    same = int((ours("bfloat16") == theirs()[0].cpu()).long().cumprod(0).sum())
    times = in_turns({"ours": partial(ours, "bfloat16"), "theirs": theirs}, bench.args.pairs)
    bench.compare(
        f"decoding at batch 1, {what}",
        times,
        "ours",
        "theirs",
        amount=count,
        unit="ms/unit",
        target=target,
        note=f"first {same} of {count} ids equal",
    )
    num_bytes = 2 * weights_read(lm)
    rate, a_unit = read_rate(num_bytes, device), statistics.median(times["ours"]) / count
    bench.add(
        Row(
            what=f"of the bandwidth ceiling, {what}",
            value=100 * num_bytes / rate / a_unit,
            unit="%",
            target=None if target is None else BANDWIDTH_TARGET,
            ours=f"{num_bytes / a_unit / 1e9:.3g} GB/s",
            theirs=f"{rate / 1e9:.3g} GB/s",
            note=f"{num_bytes / 1e6:.0f} MB of weights a unit",
        )
    )


def train(bench: Benchmark, shape: dict[str, float], device: str, text_size: int) -> None:
    """A training step, as a share of what a product of large matrices reaches here."""
    quick = bench.args.quick
    pack, length = (128, 32) if quick else (PACK, SEQUENCE)
    _, lm = make_pair(shape, device, text_size)
    step = training_step(lm, pack, length, device)
    before, after = step(), step()
    assert after < before, f"training does not lower the loss: {before}, then {after}"

    times = in_turns({"step": step}, bench.args.pairs)["step"]
    a_step = statistics.median(times)
    flops = training_flops(lm, pack, length)
    rate = matrix_rate(256 if quick else LARGE_MATRIX, device)
    bench.add(
        Row(
            what=f"training step at packs of {pack}: of the matrix rate",
            value=100 * flops / rate / a_step,
            unit="%",
            target=TRAINING_TARGET,
            ours=f"{flops / a_step / 1e12:.3g} TFLOP/s",
            theirs=f"{rate / 1e12:.3g} TFLOP/s",
            spread=tuple(100 * flops / rate / s for s in (max(times), min(times))),
            note=f"{1e3 * a_step:.3g} ms, {pack / a_step:.3g} units/s",
        )
    )
    bench.notes.append(
        f"packs of {pack // length} sequences; only products count as work, causal attention half"
    )


def training_step(lm: UnitLM, pack: int, length: int, device: str) -> Callable[[], float]:
    """What does one more step on the same pack, and gives the mean loss before it, nats."""
    generator = torch.Generator().manual_seed(3)
    # A mark before the units and the end after them; the last column is only predicted.
    sequences = [
        lm.layout.encode(
            lm.vocabulary,
            {"speech": torch.randint(NUM_UNITS, (1, length - 1), generator=generator)},
        )
        for _ in range(pack // length)
    ]
    batch = UnitBatch(sequences, num_rows=1, pad=lm.vocabulary.pad)
    batch.to(torch.device(device))
    assert batch.ids.numel() == pack
    lm.decoder.train().requires_grad_(True)
    model = HeadedDecoder(lm.decoder, lm.layout.row_ids(lm.vocabulary))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16):
            scores, targets = model(batch.ids, select=batch.select, targets=batch.targets)
            objective = next_column_objective(scores, targets, batch.weights)
        loss = objective.losses.sum() / objective.weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def training_flops(lm: UnitLM, pack: int, length: int) -> float:
    """Multiplications and additions in the products of a step: forward once, backward twice."""
    config = lm.decoder.config
    weights = weights_read(lm) * pack
    keys = length / 2  # what a position sees on average
    attention = 2 * config.num_layers * config.num_heads * config.head_dim * keys * pack
    return 3 * 2 * (weights + attention)


if __name__ == "__main__":
    main()
