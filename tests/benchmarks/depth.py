"""A frame of 8 codebooks from a Moshi-shaped model: the engine and moshi's own `LMGen.step`.

118 million weights in Moshi's proportions: a body of 7 layers and 512 dimensions, which predicts
a stream of text, and a depth transformer of 6 layers and 256 dimensions with weights of its own
for each codebook. A step is the body over one column, the text, then 8 streams one after another.

The peer keeps a ring of as many positions as its context and looks at all of them each step; the
context here is short, which is to its advantage. It comes from its own package, which asks for
other versions than ours, so it is installed beside, without what it depends on:

    .venv/bin/python -m pip install --no-deps --target runs/moshi moshi sentencepiece sphn
    PYTHONPATH=runs/moshi make bench ARGS=depth
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from bench import Benchmark, Row, cannot_run, in_turns, read_rate, start
from torch import Tensor

from speechlm.config import SamplingConfig
from speechlm.generation.generate import generate
from speechlm.model.fast_linear import Weights
from speechlm.model.unit_lm import UnitLM

NUM_STEPS = 24
TARGET = 2.0


def main(words: list[str] | None = None) -> None:
    bench = start("depth", "a frame of 8 codebooks, against LMGen.step", words, __doc__)
    try:
        from moshi_pair import NUM_CODEBOOKS, QUICK, SMALL, make_pair
    except ImportError as error:
        cannot_run(f"depth: {error}; 'depth.py --help' says how to install the peer, in one line")
    peer, lm = make_pair(QUICK if bench.args.quick else SMALL)
    for threads in sorted({1, bench.args.threads}):
        torch.set_num_threads(threads)
        # A new one: weights are laid out for as many threads when they are first used.
        compare(bench, threads, UnitLM(lm.decoder, lm.vocabulary, lm.layout), peer, NUM_CODEBOOKS)
    total = sum(parameter.numel() for parameter in peer.lm_model.parameters())
    bench.notes += [
        f"{total / 1e6:.1f} M weights as moshi has them; greedy; every run begins anew",
        "the ceiling is what reading as many bytes takes here, caches included",
    ]
    bench.finish()


def compare(bench: Benchmark, threads: int, lm: UnitLM, peer: Any, num_codebooks: int) -> None:
    """Check that both say the same, then time them."""
    count = 4 if bench.args.quick else NUM_STEPS
    nothing = {
        "speech": torch.zeros(num_codebooks, 0, dtype=torch.int64),
        "text": torch.zeros(0, dtype=torch.int64),
        "words": torch.zeros(0, 2, dtype=torch.int64),
    }
    prompt = lm.layout.prompt(lm.vocabulary, nothing)

    def ours(weights: Weights) -> Tensor:
        return generate(lm, [prompt], SamplingConfig(max_units=count), [0], weights=weights)[0]

    def theirs() -> list[Tensor | None]:
        peer.reset_streaming()
        others = torch.zeros(1, 0, 1, dtype=torch.int64)  # there is no other speaker
        return [peer.step(others) for _ in range(count)]

    said = lm.layout.read(lm.vocabulary, prompt, ours("float32"))
    frames = torch.cat([frame[0] for frame in theirs() if frame is not None], dim=1)
    assert torch.equal(said["speech"], frames[1:]), "codes differ"
    assert torch.equal(said["text"], frames[0]), "text differs"

    kinds: tuple[tuple[Weights, float | None], ...] = (("float32", TARGET), ("int8", None))
    contenders = {kind: partial(ours, kind) for kind, _ in kinds}
    times = in_turns({**contenders, "moshi": theirs}, bench.args.pairs)
    for kind, target in kinds:
        bench.compare(
            f"{kind} against float32, {threads} threads",
            times,
            kind,
            "moshi",
            amount=count,
            unit="ms/step",
            target=target,
            note=f"all codes of {frames.shape[1]} frames equal" if kind == "float32" else "",
        )
    num_bytes = 4 * weights_read(lm)
    rate, a_step = read_rate(num_bytes), statistics.median(times["float32"]) / count
    bench.add(
        Row(
            what=f"float32: of the bandwidth ceiling, {threads} threads",
            value=100 * num_bytes / rate / a_step,
            unit="%",
            ours=f"{num_bytes / a_step / 1e9:.1f} GB/s",
            theirs=f"{rate / 1e9:.1f} GB/s",
            note=f"{num_bytes / 1e6:.0f} MB of weights a step",
        )
    )


def weights_read(lm: UnitLM) -> int:
    """Weights that are read for every frame: the layers and heads of body and depth."""
    decoder = lm.decoder
    assert decoder.depth is not None
    text_rows = len(lm.layout.row_ids(lm.vocabulary)[0])
    parts = (decoder.model.layers, decoder.depth.steps, decoder.depth.heads)
    in_parts = sum(weight.numel() for part in parts for weight in part.parameters())
    return in_parts + text_rows * decoder.config.model_dim


if __name__ == "__main__":
    main()
