"""How fast a bundle is: where the time of a live answer goes, and whether it keeps up with sound.

It is asked the recordings that come with speechlm. These figures are times of this machine at
this hour: unlike all others, they are not the same from run to run.

Sources:
    Défossez et al. 2024 (Moshi), arXiv:2410.00037, for the budget of a frame.
"""

from __future__ import annotations

import hashlib
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from speechlm.audio import load_audio
from speechlm.bundle import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.data.human import human_clips
from speechlm.errors import SpeechLMError
from speechlm.evaluation.interaction.distributions import quantile_interval
from speechlm.evaluation.streams import live_reply
from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.results import Result
from speechlm.files import sha256_of
from speechlm.generation.rendering import FIRST_CHUNK_UNITS

NUM_RECORDINGS = 5
SAMPLING = SamplingConfig(max_units=100)
"""The most probable units, and no endless answer."""
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def run_latency(job: Job) -> Iterator[Result]:
    """Times of answers, in ms; shares in percent; real-time factors below 1 keep up."""
    model = job.system.bundle
    clips = [clip.path for clip in human_clips("prompts").values()][:NUM_RECORDINGS]
    sha256 = hashlib.sha256("".join(map(sha256_of, clips)).encode()).hexdigest()

    def score(left: Sequence[Path]) -> Iterator[Item]:
        for number, path in enumerate(left):
            try:
                if number == 0:  # a first answer takes longer than all others
                    time_answer(model, path)
                yield time_answer(model, path)
            except SpeechLMError as error:
                yield Item(id=path.stem, error=str(error))

    items = job.run_items(clips, score, sha256, "recordings")
    yield from job.rows(items, sha256)
    good = [item for item in items if not item.error]
    blank = job.row(data_sha256=sha256)
    for name in ("step_ms", "first_packet_ms"):
        groups = [item.note[name] for item in good]
        every = [value for some in groups for value in some]
        for quantile, share in QUANTILES.items():
            yield replace(
                blank,
                subset=name,
                variant=quantile,
                value=float(np.quantile(every, share)) if every else None,
                ci95=quantile_interval(groups, share, seed=job.seed) if every else None,
                n=len(groups),
                error="" if every else "no answer had any sound",
            )
    # Of the model alone, whatever it is asked.
    for name, value in (*algorithmic_latency(model).items(), ("peak_memory_mb", peak_memory_mb())):
        yield replace(blank, subset="model", variant=name, value=value)


def time_answer(model: SpeechLM, path: Path) -> Item:
    """Every part alone on the whole, then all of them live.

    Raises:
        InputError: The recording is longer than the LM's context.
    """
    wave = load_audio(path, model.tokenizer.sample_rate)
    clock = time.perf_counter()
    units = model.encode(wave, model.tokenizer.sample_rate)
    encoded = time.perf_counter()
    answers = model.reply_units([units], sampling=SAMPLING)
    drawn = time.perf_counter()
    sound = model.vocoder.decode(answers, speaker=model.reply_voice)[0]
    rendered = time.perf_counter()
    figures = {"tokenize_rtf": (encoded - clock, len(wave) / model.tokenizer.sample_rate)}
    if len(sound):
        answer_s = len(sound) / model.sample_rate
        figures["generate_rtf"] = drawn - encoded, answer_s
        figures["vocode_rtf"] = rendered - drawn, answer_s
    live = live_reply(model, wave, SAMPLING, whole=True)
    # A column of the LM may hold less than a frame, such as one of several codebooks.
    answer_s = sum(lasts for _, lasts in live.chunks_s)
    budget_s = answer_s / len(live.steps_s)
    later = live.steps_s[1:]  # the first one reads the question
    wait_ms: list[float] = []
    if live.wait_s is not None and live.steps_to_sound is not None:
        wait_ms = [1000 * live.wait_s]
        parts = {
            "first_packet_ms": live.wait_s,
            "first_packet_listening_ms": live.listening_s,
            "first_packet_prefill_ms": live.steps_s[0],
            "first_packet_units_ms": sum(live.steps_s[1 : live.steps_to_sound]),
            "first_packet_vocoder_ms": sum(t for t, _ in live.chunks_s[: live.chunks_to_sound]),
        }
        figures |= {name: (1000 * spent, 1.0) for name, spent in parts.items()}
        figures["live_rtf"] = sum(later) + sum(t for t, _ in live.chunks_s), answer_s
        if later:
            missed = sum(step > budget_s for step in later)
            figures["deadline_miss"] = 100.0 * missed, float(len(later))
            figures["step_budget_ms"] = 1000 * answer_s, float(len(live.steps_s))
    return Item(
        id=path.stem,
        figures=figures,
        note={"step_ms": [1000 * step for step in later], "first_packet_ms": wait_ms},
    )


def algorithmic_latency(model: SpeechLM) -> dict[str, float]:
    """What would be waited for on a machine without end, ms, and what it is made of."""
    tokenizer, vocoder = model.tokenizer, model.vocoder
    frame_ms = 1000 / tokenizer.frame_rate
    parts = {
        "frame_ms": frame_ms,
        "tokenizer_lookahead_ms": 1000 * tokenizer.lookahead / tokenizer.sample_rate,
        "vocoder_lookahead_ms": vocoder.lookahead * frame_ms,
    }
    # Replies are rendered by chunks, of which the first frame waits for the rest.
    parts["chunk_ms"] = FIRST_CHUNK_UNITS * frame_ms
    whole = {name: parts[name] for name in parts if name != "chunk_ms"}
    return {"algorithmic_ms": sum(whole.values()), **parts}


def peak_memory_mb() -> float:
    """The most memory that this process has had, of the GPU where there is one, MB."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
