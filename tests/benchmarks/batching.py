"""16 requests at once, greedily on a CPU: continuous batching, and transformers' two ways.

Prompts and outputs are of unequal lengths. Ours all go through one engine, where each joins when
there is room and leaves when it is done. transformers' `generate` takes them one after another,
or as one batch that is padded on the left, where all go on until the longest is done. The sum of
what was asked for is what counts: what a padded batch makes beyond it is of no use to anyone.
"""

from __future__ import annotations

from functools import partial

import torch
from bench import in_turns, start
from qwen import QUICK, SMALL, continue_with_transformers, make_pair, random_prompt
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2ForCausalLM

from speechlm.config import SamplingConfig
from speechlm.generation.engine import Engine
from speechlm.generation.request import Request, positions_for
from speechlm.model.unit_lm import UnitLM

NUM_REQUESTS = 16
PROMPT_COLUMNS = (25, 150)
NEW_COLUMNS = (16, 128)
TARGET = 4.0


def main(words: list[str] | None = None) -> None:
    bench = start("batching", "16 requests at once, against generate", words, __doc__)
    quick = bench.args.quick
    model, lm = make_pair(QUICK if quick else SMALL)
    requests = make_requests(lm, 3 if quick else NUM_REQUESTS, shrink=8 if quick else 1)
    prompts = [request.prompt.ids for request in requests]
    counts = [request.sampling.max_units for request in requests]
    contenders = {
        "ours": partial(run_engine, lm, requests),
        "one by one": partial(one_by_one, model, prompts, counts),
        "padded": partial(as_one_batch, model, prompts, counts),
    }
    spoken = {name: run() for name, run in contenders.items()}
    for name in ("one by one", "padded"):
        for mine, others in zip(spoken["ours"], spoken[name], strict=True):
            assert torch.equal(mine, others), f"greedy ids differ from transformers' {name}"

    times = in_turns(contenders, bench.args.pairs, warm=True)
    bench.compare(
        "against generate, one after another",
        times,
        "ours",
        "one by one",
        amount=sum(counts),
        unit="ms/unit",
        target=TARGET,
    )
    bench.compare(
        "against generate, one padded batch",
        times,
        "ours",
        "padded",
        amount=sum(counts),
        unit="ms/unit",
    )
    lengths = [len(request.prompt) for request in requests]
    bench.notes += [
        f"{len(requests)} prompts of {min(lengths)} to {max(lengths)} columns, outputs of "
        f"{min(counts)} to {max(counts)} units, {sum(counts)} in all; all greedy ids are equal",
        f"the padded batch makes {len(counts) * max(counts)} units for them",
    ]
    bench.finish()


def make_requests(lm: UnitLM, number: int, shrink: int) -> list[Request]:
    """Requests whose prompts and outputs have lengths of their own."""
    generator = torch.Generator().manual_seed(1)

    def lengths(bounds: tuple[int, int]) -> list[int]:
        least, most = (bound // shrink for bound in bounds)
        return torch.randint(least, most + 1, (number,), generator=generator).tolist()

    return [
        Request(
            prompt=random_prompt(lm, length, generator), sampling=SamplingConfig(max_units=count)
        )
        for length, count in zip(lengths(PROMPT_COLUMNS), lengths(NEW_COLUMNS), strict=True)
    ]


def run_engine(lm: UnitLM, requests: list[Request]) -> list[Tensor]:
    """What the engine says, int64 [count] a request; making the engine is part of it."""
    engine = Engine(lm, num_positions=positions_for(lm, requests))
    outputs: dict[int, list[int]] = {engine.add(request)[0]: [] for request in requests}
    while engine.busy:
        for drawn in engine.step():
            outputs[drawn.ticket].append(drawn.column[0])
    return [torch.tensor(ids) for ids in outputs.values()]


def one_by_one(model: Qwen2ForCausalLM, prompts: list[Tensor], counts: list[int]) -> list[Tensor]:
    return [
        continue_with_transformers(model, ids, count)[0]
        for ids, count in zip(prompts, counts, strict=True)
    ]


def as_one_batch(model: Qwen2ForCausalLM, prompts: list[Tensor], counts: list[int]) -> list[Tensor]:
    longest = max(ids.shape[1] for ids in prompts)
    padding = [(longest - ids.shape[1], 0) for ids in prompts]
    padded = torch.cat([F.pad(ids, pad) for ids, pad in zip(prompts, padding, strict=True)])
    masks = [F.pad(torch.ones_like(ids), pad) for ids, pad in zip(prompts, padding, strict=True)]
    output = continue_with_transformers(model, padded, max(counts), torch.cat(masks))
    return [row[:count] for row, count in zip(output, counts, strict=True)]


if __name__ == "__main__":
    main()
