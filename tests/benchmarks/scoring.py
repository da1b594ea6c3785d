"""The likelihood of 200 recordings of unequal length, on a CPU: ours, and transformers padded.

transformers scores batches of 16, in the order given, padded on the right: the way it is usually
done. That one sorts by length first, too, is shown beside it. Each unit counts, given all before
it; marks and ends do not.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from bench import in_turns, start
from qwen import NUM_UNITS, QUICK, SMALL, make_pair
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2ForCausalLM

from speechlm.layouts.grid import LMSequence
from speechlm.model.likelihood import score
from speechlm.model.unit_lm import UnitLM

NUM_RECORDINGS, BATCH = 200, 16
SHORTEST, LONGEST = 25, 300
"""Units: 1 to 12 seconds at 25 Hz."""
TARGET = 2.0
IGNORED = -100


def main(words: list[str] | None = None) -> None:
    bench = start("scoring", "likelihood of 200 recordings, against padding", words, __doc__)
    quick = bench.args.quick
    model, lm = make_pair(QUICK if quick else SMALL)
    sequences = make_sequences(lm, 20 if quick else NUM_RECORDINGS, shrink=10 if quick else 1)
    lengths = [len(sequence) for sequence in sequences]
    given = list(range(len(sequences)))
    by_length = sorted(given, key=lambda index: lengths[index])
    contenders = {
        "ours": lambda: torch.tensor([found.total for found in score(lm, sequences)]),
        "in order": partial(score_padded, model, lm, sequences, given),
        "sorted": partial(score_padded, model, lm, sequences, by_length),
    }
    sums = {name: run() for name, run in contenders.items()}
    for name in ("in order", "sorted"):
        torch.testing.assert_close(sums["ours"], sums[name], rtol=1e-3, atol=0)

    times = in_turns(contenders, bench.args.pairs, warm=True)
    for what, theirs, target in (
        (f"against batches of {BATCH}, in order", "in order", TARGET),
        (f"against batches of {BATCH}, sorted by length", "sorted", None),
    ):
        bench.compare(
            what,
            times,
            "ours",
            theirs,
            amount=len(sequences),
            unit="ms/recording",
            target=target,
        )
    off = float(((sums["ours"] - sums["in order"]) / sums["in order"]).abs().max())
    bench.notes += [
        f"{len(lengths)} recordings of {min(lengths)} to {max(lengths)} columns, "
        f"{sum(lengths)} in all, {columns_read(lengths)} with padding in the order given",
        f"the sums differ by at most {off:.0e} of themselves",
    ]
    bench.finish()


def make_sequences(lm: UnitLM, number: int, shrink: int) -> list[LMSequence]:
    """Recordings whose lengths are spread evenly on a logarithmic scale."""
    generator = torch.Generator().manual_seed(1)
    least, most = math.log(SHORTEST / shrink), math.log(LONGEST / shrink)
    lengths = (least + (most - least) * torch.rand(number, generator=generator)).exp().round()
    return [
        lm.layout.encode(
            lm.vocabulary, {"speech": torch.randint(NUM_UNITS, (1, int(n)), generator=generator)}
        )
        for n in lengths
    ]


def columns_read(lengths: list[int]) -> int:
    """Columns that batches in the order given hold, padding included."""
    batches = [lengths[first : first + BATCH] for first in range(0, len(lengths), BATCH)]
    return sum(len(batch) * max(batch) for batch in batches)


@torch.inference_mode()
def score_padded(
    model: Qwen2ForCausalLM, lm: UnitLM, sequences: list[LMSequence], order: list[int]
) -> Tensor:
    """The log-likelihood of each recording's units, float32 [N], by transformers."""
    (known,) = lm.layout.row_ids(lm.vocabulary)
    never = torch.ones(lm.vocabulary.size, dtype=torch.bool)
    never[known] = False
    totals = torch.zeros(len(sequences))
    for first in range(0, len(order), BATCH):
        chosen = order[first : first + BATCH]
        batch = [sequences[index].ids[0] for index in chosen]
        longest = max(map(len, batch))
        ids = torch.stack([F.pad(row, (0, longest - len(row))) for row in batch])
        mask = torch.stack([F.pad(torch.ones_like(row), (0, longest - len(row))) for row in batch])
        targets = ids[:, 1:].masked_fill(ids[:, 1:] < lm.vocabulary.first_unit, IGNORED)
        logits = model(ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        logits[..., never] = -torch.inf  # our row has no such ids
        nlls = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        totals[chosen] = -nlls.view_as(targets).sum(dim=1)
    return totals


if __name__ == "__main__":
    main()
