"""Whether a model goes on in the manner of its prompt: pGSLM's figures, of any bundle.

Each prompt is continued several times. What was rendered and what was recorded are tokenized by
the bundle's own tokenizer, and their pitch is tracked, so that all of them have durations and
pitch of units. Pitch is compared as it lies above or below the mean of the prompt, each in the
voice that speaks: the recording's prompt, or the prompt rendered.

How probable the recordings' own units are is there for every bundle, a stream each.

Source:
    Kharitonov et al. 2021 (pGSLM), arXiv:2109.03264.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from speechlm.audio import resample
from speechlm.bundle import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.data.corpus import Recording, open_corpus
from speechlm.errors import AudioError, SpeechLMError
from speechlm.evaluation.intervals import bootstrap_interval
from speechlm.evaluation.prosody import (
    HOP_S,
    Stretches,
    correlations,
    deviations,
    least_error,
    mean,
    moments,
    pair_moments,
    stretches,
)
from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.prompts import (
    Heard,
    Protocol,
    apart,
    bounded,
    choose_prompts,
    portions,
    prompts_sha256,
    seed_of,
    try_hear,
)
from speechlm.evaluation.tasks.results import Result
from speechlm.model.likelihood import score_recordings
from speechlm.units import Units

SAMPLES = 20
"""Continuations of each prompt, as in pGSLM."""
PROTOCOL = Protocol(most=100, sampling=SamplingConfig(temperature=1.0))
PROMPTS_AT_ONCE = 4
MS = 1000.0
PITCH_RATE = 16_000
_NONE = np.zeros(0)


def run_prosody(job: Job) -> Iterator[Result]:
    """Prosody of continuations."""
    yield from prosody_rows(job, PROTOCOL, SAMPLES)


def prosody_rows(job: Job, protocol: Protocol, samples: int) -> Iterator[Result]:
    """All figures; intervals of standard deviations and correlations are bootstraps over prompts.

    Raises:
        CorpusError: No recording is long enough.
    """
    model = job.system.bundle
    recordings = choose_prompts(open_corpus(job.given), protocol)
    sha256 = prompts_sha256(recordings, protocol, samples)

    def score(left: Sequence[Recording]) -> Iterator[Item]:
        return score_prosody(model, left, protocol=protocol, samples=samples, seed=job.seed)

    items = job.run_items(recordings, score, sha256, "prompts")
    yield from job.rows(items, sha256)
    blank = job.row(data_sha256=sha256)
    good = [item.note["moments"] for item in items if not item.error]
    for variant in good[0] if good else ():
        statistic = correlations if variant.endswith("correlation") else deviations
        rows = [found[variant] for found in good]
        value = float(statistic(np.sum(rows, axis=0)[None])[0])
        if math.isnan(value):
            yield replace(blank, variant=variant, error="too little is voiced, or all is alike")
            continue
        low, high = bootstrap_interval(rows, statistic, seed=job.seed)
        interval = None if math.isnan(low + high) else (low, high)
        yield replace(blank, variant=variant, value=value, ci95=interval, n=len(rows))


def score_prosody(
    model: SpeechLM,
    recordings: Sequence[Recording],
    *,
    protocol: Protocol,
    samples: int,
    seed: int,
) -> Iterator[Item]:
    """Continue recordings several times and measure how it sounds; an item each, in order.

    An item's ``note`` has ``numbers``, from which deviations and correlations are pooled.
    """
    drawn = bounded(model, protocol, protocol.sampling)
    for portion in portions(recordings, PROMPTS_AT_ONCE):
        heard = try_hear(model, portion, protocol)
        usable = [one for one in heard.values() if not isinstance(one, str)]
        todo = [(one, sample) for one in usable for sample in range(samples)]

        def work(part: Sequence[tuple[Heard, int]]) -> list[Units]:
            seeds = [seed_of(seed, one.recording.id, sample) for one, sample in part]
            return model.continue_units([one.units for one, _ in part], sampling=drawn, seeds=seeds)

        said: dict[str, list[Units | str]] = {}
        for (one, _), units in zip(todo, apart(work, todo), strict=True):
            said.setdefault(one.recording.id, []).append(units)
        for recording in portion:
            found = heard[recording.id]
            if isinstance(found, str):
                yield Item(id=recording.id, error=found)
                continue
            outputs = said[recording.id]
            error = next((one for one in outputs if isinstance(one, str)), "")
            if error:
                yield Item(id=recording.id, error=error)
                continue
            yield _item(model, found, [one for one in outputs if not isinstance(one, str)])


def _item(model: SpeechLM, heard: Heard, outputs: Sequence[Units]) -> Item:
    voice = model.voice_of(heard.prompt, model.tokenizer.sample_rate)
    tokenizer_rate, rate = model.tokenizer.sample_rate, model.sample_rate

    def render(units: Units) -> Tensor:
        if not units.codes.shape[1]:
            return torch.zeros(0)
        return model.vocoder.decode([units], speaker=voice)[0]

    try:
        prompt, rest = (measure(model, wave, tokenizer_rate) for wave in (heard.prompt, heard.rest))
        own_prompt = measure(model, render(heard.units), rate)
        waves = [render(units)[: round(heard.rest_s * rate)] for units in outputs]
        likely = teacher_forced(model, torch.cat([heard.prompt, heard.rest]))
    except SpeechLMError as error:
        return Item(id=heard.recording.id, error=str(error))
    samples = [found for wave in waves if (found := _try_measure(model, wave, rate)) is not None]
    figures = {"empty-output": (100.0 * (len(waves) - len(samples)), float(len(waves))), **likely}
    pitches = [one.log_f0 - mean(own_prompt.log_f0) for one in samples]
    least = {
        "duration-mae-min-ms": least_error(
            [MS * one.durations_s for one in samples], MS * rest.durations_s
        ),
        "log-f0-mae-min": least_error(pitches, rest.log_f0 - mean(prompt.log_f0)),
    }
    for variant, nearest in least.items():
        if nearest is not None:
            figures[variant] = (nearest[0] / nearest[1], 1.0)
    moments_of = {
        "duration-std-ms": moments(
            np.concatenate([_NONE, *(MS * one.durations_s for one in samples)])
        ),
        "log-f0-std": moments(np.concatenate([_NONE, *pitches])),
        "recorded/duration-std-ms": moments(MS * rest.durations_s),
        "recorded/log-f0-std": moments(rest.log_f0 - mean(prompt.log_f0)),
        "duration-correlation": pair_moments(
            [(mean(prompt.durations_s), mean(one.durations_s)) for one in samples]
        ),
        "log-f0-correlation": pair_moments(
            [(mean(prompt.log_f0), mean(one.log_f0)) for one in samples]
        ),
        "recorded/duration-correlation": pair_moments(
            [(mean(prompt.durations_s), mean(rest.durations_s))]
        ),
        "recorded/log-f0-correlation": pair_moments([(mean(prompt.log_f0), mean(rest.log_f0))]),
    }
    return Item(id=heard.recording.id, figures=figures, note={"moments": moments_of})


def measure(model: SpeechLM, wave: Tensor, sample_rate: int) -> Stretches:
    """Durations and pitch of a sound's units, as the bundle's tokenizer hears it.

    Raises:
        AudioError: It is too short, silent or no number.
    """
    from speechlm_vocoders.pitch import track_pitch

    units = model.encode(wave, sample_rate).expand()
    heard = resample(wave, sample_rate, PITCH_RATE)
    log_f0, voiced = track_pitch(heard[None], PITCH_RATE, round(HOP_S * PITCH_RATE))
    return stretches(units.codes[0], units.frame_rate, log_f0[0], voiced[0])


def _try_measure(model: SpeechLM, wave: Tensor, sample_rate: int) -> Stretches | None:
    try:
        return measure(model, wave, sample_rate)
    except AudioError:  # an output of nothing, or of silence
        return None


def teacher_forced(model: SpeechLM, wave: Tensor) -> dict[str, tuple[float, float]]:
    """Negative log-likelihood of a recording's own units and how many, a stream each.

    Streams are called as the tokenizer calls its rows, such as ``f0``; the first is ``unit``.

    Raises:
        AudioError: The recording cannot be used.
        InputError: The LM's layout takes no speech by itself, or the recording is too long.
    """
    units = model.encode(wave, model.tokenizer.sample_rate)
    rows = getattr(model.tokenizer, "rows", ())
    count = len(model.lm.vocabulary.stream_sizes)
    found = {}
    for stream in range(count):
        of_side = stream - (count - len(rows))
        name = rows[of_side] if of_side >= 0 else "unit" if not stream else f"unit{stream}"
        (likely,) = score_recordings(model.lm, [units], streams=(stream,))
        found[f"teacher-forced/nll-{name}"] = (-likely.total, likely.num_units)
    return found
