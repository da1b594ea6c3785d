"""Every embedded measure of many recordings: one process against two, and each measure alone.

The recordings are those of the package, each against itself with faint noise; they are repeated,
with other noise, until there are as many as are asked for. Both ways give the same figures, to
the last bit; only the time differs.
"""

from __future__ import annotations

from functools import partial

import torch
from bench import Row, in_turns, start

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.evaluation.signal.measuring import measure_many
from speechlm.evaluation.signal.scorers import SAMPLE_RATE, Measured, Sample, choose, measure

RECORDINGS = 500
NOISE = 0.005
TARGET = 1.7
"""Of two cores: what the second one's start and the common memory leave."""
QUICK = ["mcd_f0", "si_sdr"]


def main(words: list[str] | None = None) -> None:
    bench = start("measuring", "measures of recordings, on one core and on two", words, __doc__)
    quick = bench.args.quick
    samples = make_samples(4 if quick else RECORDINGS)
    names = QUICK if quick else choose(None)[0]
    found: dict[str, list[Measured]] = {}

    def run(workers: int) -> None:
        found[f"{workers}"] = list(measure_many(samples, names, len(samples), num_workers=workers))

    # One round: it takes minutes, beside which the second one's start is little.
    times = in_turns({f"{workers}": partial(run, workers) for workers in (1, 2)}, 1, warm=True)
    for one, two in zip(found["1"], found["2"], strict=True):
        assert one.figures == two.figures, "figures hang on the number of processes"
    bench.compare(
        "two processes against one",
        times,
        "2",
        "1",
        amount=len(samples),
        unit="ms/recording",
        target=TARGET,
    )
    few = samples[:20]
    alone = {name: partial(run_here, few, name) for name in names}
    for name, seconds in in_turns(alone, 1).items():
        bench.add(Row(what=name, value=1e3 * seconds[0] / len(few), unit="ms/recording"))
    length_s = sum(len(each.wave) for each in samples) / SAMPLE_RATE
    bench.notes.append(f"{len(samples)} recordings, {length_s / len(samples):.1f} s each")
    bench.finish()


def make_samples(number: int) -> list[Sample]:
    """Recordings beside noisy copies of them."""
    clips = [load_audio(clip.path, SAMPLE_RATE) for clip in human_clips().values()]
    generator = torch.Generator().manual_seed(1)
    samples = []
    for index in range(number):
        wave = clips[index % len(clips)]
        noise = NOISE * torch.randn(len(wave), generator=generator)
        samples.append(
            Sample(
                wave=(wave + noise).numpy(),
                sample_rate=SAMPLE_RATE,
                reference=wave.numpy(),
                reference_rate=SAMPLE_RATE,
            )
        )
    return samples


def run_here(samples: list[Sample], name: str) -> None:
    for sample in samples:
        measure(sample, [name])


if __name__ == "__main__":
    main()
