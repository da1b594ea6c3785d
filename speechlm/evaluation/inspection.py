"""``speechlm inspect tokenizer``: what a tokenizer keeps, costs and promises, in figures."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from speechlm.data.corpus import Recording
from speechlm.data.human import human_clips
from speechlm.data.shards import UnitFormat
from speechlm.errors import AudioError, InputError, PluginError
from speechlm.evaluation.measures import codebook_usage
from speechlm.evaluation.representation import phone_agreement, phones_of_frames
from speechlm.evaluation.word_error import (
    SentenceJudge,
    spoken_words,
    word_error,
    word_error_difference,
)
from speechlm.progress import progress, say
from speechlm.protocols import AudioTokenizer, Vocoder
from speechlm.resynthesis import Resynthesizer
from speechlm.units import Units

CHUNKS_S = (0.01, 0.037, 0.2, 1.0)
"""Pieces that recordings are cut into for a stream, s; and one sample at a time, on a few."""
BATCH = 8
"""Recordings a batch when batches are compared with single recordings."""
CHECKED = 24
"""Recordings whose units are made again in a batch and by streams."""
SINGLE_SAMPLES_S = 0.25
"""How much of a recording is given to a stream one sample at a time, s."""
MAX_HUMAN = 3
"""Recordings of the package that are heard in every report."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """A recording and what its units keep of it."""

    title: str
    text: str
    recorded: Tensor
    """float32 [T] at the tokenizer's rate."""
    resynthesized: Tensor
    """float32 [T'] at the vocoder's rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """A recording, read and tokenized."""

    recording: Recording
    wave: Tensor
    units: Units


def inspect_tokenizer(
    tokenizer: AudioTokenizer,
    recordings: Sequence[Recording],
    *,
    resynthesizer: Resynthesizer | None = None,
    others: Sequence[str] = (),
    judge: bool = True,
    seed: int = 1,
) -> tuple[dict[str, Any], list[Sample]]:
    """Measure a tokenizer on recordings, and by ear with a vocoder.

    Args:
        tokenizer: Any.
        recordings: Those that cannot be read are named and left out.
        resynthesizer: The tokenizer with a vocoder; None to leave resynthesis out.
        others: Further texts of the corpus, for the judge to tell apart.
        judge: Whether to measure word errors, which takes seconds a recording.
        seed: Of every draw.

    Returns:
        The figures, and recordings to listen to.

    Raises:
        AudioError: No recording can be read.
    """
    heard, seconds = _tokenize(tokenizer, recordings)
    length_s = sum(len(each.wave) for each in heard) / tokenizer.sample_rate
    units = [each.units for each in heard]
    figures: dict[str, Any] = {
        "tokenizer": describe(tokenizer),
        "recordings": {"n": len(heard), "seconds": length_s},
        "rates": rates(units, tokenizer),
        "codebooks": codebook_usage(units, UnitFormat.of(tokenizer).sizes),
        "agreement": agreement(tokenizer, heard[:CHECKED]),
        "speed": {"times_real_time": length_s / max(sum(seconds), 1e-9)},
    }
    seams = getattr(tokenizer, "seams", None)
    if seams is not None and (found := [s for each in heard if (s := seams(each.wave))]):
        figures["seams"] = {"agreement": sum(found) / len(found), "n": len(found)}
    if any(each.recording.phones for each in heard):
        figures["phones"] = _phones(heard, tokenizer)
    samples: list[Sample] = []
    if resynthesizer is not None:
        figures["resynthesis"], samples = _resynthesize(
            resynthesizer, heard, others=others, judge=judge, seed=seed
        )
    return figures, samples


def describe(tokenizer: AudioTokenizer) -> dict[str, Any]:
    """What a tokenizer says of itself."""
    per_frame = sum(math.log2(size) for size in UnitFormat.of(tokenizer).sizes)
    return {
        "fingerprint": tokenizer.fingerprint,
        "sample_rate": tokenizer.sample_rate,
        "frame_rate": tokenizer.frame_rate,
        "num_codebooks": tokenizer.num_codebooks,
        "vocab_size": tokenizer.vocab_size,
        "bits_per_second": per_frame * tokenizer.frame_rate,
        "streaming": tokenizer.streaming,
        "lookahead_ms": 1000 * tokenizer.lookahead / tokenizer.sample_rate,
    }


def rates(units: Sequence[Units], tokenizer: AudioTokenizer) -> dict[str, float]:
    """Units and bits a second, as they come and after repeats are collapsed."""
    seconds = sum(each.duration_s for each in units)
    entropy = 0.0
    for row in codebook_usage(units, UnitFormat.of(tokenizer).sizes):
        entropy += math.log2(row["perplexity"]) * row["frames"]
    collapsed = sum(each.collapse().codes.shape[1] for each in units)
    given = sum(each.codes.shape[1] for each in units)
    return {
        "units_per_second": given / seconds,
        "collapsed_units_per_second": collapsed / seconds,
        "entropy_bits_per_second": entropy / seconds,
    }


def agreement(tokenizer: AudioTokenizer, heard: Sequence[Heard]) -> dict[str, Any]:
    """The share of units that are the same in a padded batch, and however a stream is cut."""
    same = total = 0
    for start in range(0, len(heard), BATCH):
        some = heard[start : start + BATCH]
        lengths = torch.tensor([len(each.wave) for each in some])
        batch = torch.full((len(some), int(lengths.max()) + 4321), 0.1)
        for row, each in zip(batch, some, strict=True):
            row[: len(each.wave)] = each.wave
        for each, again in zip(some, tokenizer.encode(batch, lengths), strict=True):
            same += _num_same(each.units.codes, again.codes)
            total += each.units.codes.numel()
    chunks: dict[str, float] = {}
    for chunk_s in CHUNKS_S:
        size = max(1, round(chunk_s * tokenizer.sample_rate))
        chunks[f"{1000 * chunk_s:g} ms"] = _stream_agreement(
            tokenizer, [(each.wave, each.units.codes) for each in heard], size
        )
    few = round(SINGLE_SAMPLES_S * tokenizer.sample_rate)
    shortened = [each.wave[:few] for each in heard[:2]]
    pairs = [(wave, tokenizer.encode(wave[None])[0].codes) for wave in shortened]
    chunks["1 sample"] = _stream_agreement(tokenizer, pairs, 1)
    return {"batch": same / max(total, 1), "chunks": chunks}


def _stream_agreement(
    tokenizer: AudioTokenizer, pairs: Sequence[tuple[Tensor, Tensor]], size: int
) -> float:
    same = total = 0
    for wave, codes in pairs:
        stream = tokenizer.stream()
        parts = [stream.push(piece) for piece in torch.split(wave, size)]
        streamed = torch.cat([*parts, stream.finish()], dim=1)
        same += _num_same(codes, streamed)
        total += codes.numel()
    return same / max(total, 1)


def _num_same(first: Tensor, second: Tensor) -> int:
    if first.shape != second.shape:
        frames = min(first.shape[1], second.shape[1])
        return int((first[:, :frames] == second[:, :frames]).sum())
    return int((first == second).sum())


def _tokenize(
    tokenizer: AudioTokenizer, recordings: Sequence[Recording]
) -> tuple[list[Heard], list[float]]:
    heard, seconds, reason = [], [], ""
    with progress("tokenizing", len(recordings), "recordings") as advance:
        for recording in recordings:
            advance()
            try:
                wave = recording.load(tokenizer.sample_rate)
            except AudioError as error:
                reason = str(error)
                say(f"left out: {reason}")
                continue
            start = time.perf_counter()
            units = tokenizer.encode(wave[None])[0]
            seconds.append(time.perf_counter() - start)
            heard.append(Heard(recording=recording, wave=wave, units=units))
    if not heard:
        raise AudioError(f"none of {len(recordings)} recordings can be read; the last: {reason}")
    return heard, seconds


def _phones(heard: Sequence[Heard], tokenizer: AudioTokenizer) -> dict[str, Any]:
    """The first codebook against phones: it is the one that is to stand for them."""
    codes, labels = [], []
    for each in heard:
        if each.recording.phones is None:
            continue
        frames = each.units.codes[0]
        if each.units.durations is not None:
            frames = frames.repeat_interleave(each.units.durations)
        codes.append(frames)
        labels += phones_of_frames(each.recording.phones, len(frames), tokenizer.frame_rate)
    return phone_agreement(torch.cat(codes), labels)


def _resynthesize(
    resynthesizer: Resynthesizer,
    heard: Sequence[Heard],
    *,
    others: Sequence[str],
    judge: bool,
    seed: int,
) -> tuple[dict[str, Any], list[Sample]]:
    vocoder = resynthesizer.vocoder
    rate = resynthesizer.tokenizer.sample_rate
    waves, spent = [], 0.0
    with progress("rendering", len(heard), "recordings") as advance:
        for each in heard:
            voice = resynthesizer.voice_of(each.wave, rate)
            start = time.perf_counter()
            waves += vocoder.decode([each.units], speaker=voice)
            spent += time.perf_counter() - start
            advance()
    seconds = sum(len(wave) for wave in waves) / vocoder.sample_rate
    figures: dict[str, Any] = {
        "vocoder": vocoder.fingerprint,
        "sample_rate": vocoder.sample_rate,
        "times_real_time": seconds / max(spent, 1e-9),
        "first_sound_ms": first_sound_ms(vocoder, [each.units for each in heard]),
    }
    if judge:
        figures["judge"] = _judge(heard, waves, rate, vocoder.sample_rate, others, seed)
    samples = _human_samples(resynthesizer)
    for index in random.Random(seed).sample(range(len(heard)), min(3, len(heard))):
        samples.append(
            Sample(
                title=heard[index].recording.speaker or heard[index].recording.id,
                text=heard[index].recording.text or "",
                recorded=heard[index].wave,
                resynthesized=waves[index],
            )
        )
    return figures, samples


def first_sound_ms(vocoder: Vocoder, units: Sequence[Units]) -> float:
    """Median time from the first units of a stream to its first samples, ms.

    Units come one frame at a time, at once: what is measured is the computing.
    """
    waits = []
    for each in units[:CHECKED]:
        codes = each.codes
        stream = vocoder.stream()
        start = time.perf_counter()
        for frame in range(codes.shape[1]):
            if len(stream.push(codes[:, frame : frame + 1])):
                waits.append(1000 * (time.perf_counter() - start))
                break
    return median(waits) if waits else float("nan")


def _judge(
    heard: Sequence[Heard],
    waves: Sequence[Tensor],
    rate: int,
    rendered_rate: int,
    others: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    try:
        sentences = SentenceJudge([each.recording.text or "" for each in heard], others, seed)
    except (InputError, PluginError) as error:
        return {"left_out": str(error)}
    told = [
        (each, wave)
        for each, wave in zip(heard, waves, strict=True)
        if " ".join(spoken_words(each.recording.text or "")) in sentences.sentences
    ]
    texts = [each.recording.text or "" for each, _ in told]
    words = [len(spoken_words(text)) for text in texts]
    say(f"listening to {len(told)} recordings and their resynthesis")
    recorded = [e for e, _ in sentences.errors([each.wave for each, _ in told], rate, texts)]
    rendered = [e for e, _ in sentences.errors([wave for _, wave in told], rendered_rate, texts)]
    return {
        "recorded": word_error(recorded, words, seed),
        "resynthesized": word_error(rendered, words, seed),
        "grown": word_error_difference(recorded, rendered, words, seed),
        "sentences": len(sentences.sentences),
    }


def _human_samples(resynthesizer: Resynthesizer) -> list[Sample]:
    from speechlm.audio import load_audio

    rate = resynthesizer.tokenizer.sample_rate
    samples = []
    for clip in list(human_clips("prompts").values())[:MAX_HUMAN]:
        wave = load_audio(clip.path, rate)
        samples.append(
            Sample(
                title="a human voice",
                text=clip.text,
                recorded=wave,
                resynthesized=resynthesizer.resynthesize(wave, rate),
            )
        )
    return samples
