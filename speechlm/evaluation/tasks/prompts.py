"""Prompts of recordings, continued by a model: what benchmarks of generation have in common."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from speechlm.bundle import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.data.corpus import Corpus, Recording
from speechlm.errors import AudioError, CorpusError, InputError, SpeechLMError
from speechlm.evaluation.recognizer import SpeechRecognizer
from speechlm.files import sha256_of
from speechlm.progress import say
from speechlm.units import Units

AT_ONCE = 32
"""Recordings continued and heard together; as many are lost if a run is killed."""
LEAST_HEARD_S = 0.1
"""Sound shorter than this is taken for none."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How recordings become prompts, and how those are continued."""

    prompt_s: float = 3.0
    """The beginning that the model hears, s."""
    least_s: float = 6.0
    """Shorter recordings are left out, s."""
    most: int = 1000
    """The shortest recordings that are taken."""
    continuation_s: float = 6.0
    """A continuation is cut to this, and to what the recording has after its prompt, s."""
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(temperature=0.8, top_k=25)
    )
    """``max_units`` is replaced: as many positions as the continuation can take."""


def choose_prompts(corpus: Corpus, protocol: Protocol) -> list[Recording]:
    """The shortest recordings that are long enough; those that cannot be measured come last.

    Raises:
        CorpusError: There are none.
    """
    lengths: dict[str, float] = {}
    for recording in corpus:
        try:
            lengths[recording.id] = recording.measure_s()
        except AudioError:
            lengths[recording.id] = math.inf  # reading it will say what is wrong
    chosen = [one for one in corpus if lengths[one.id] >= protocol.least_s]
    if not chosen:
        raise CorpusError(
            f"expected recordings of {protocol.least_s:g} s or more to continue, "
            f"got {len(corpus)} shorter ones"
        )
    if short := len(corpus) - len(chosen):
        say(f"{short} recordings are shorter than {protocol.least_s:g} s and left out")
    return sorted(chosen, key=lambda one: (lengths[one.id], one.id))[: protocol.most]


def prompts_sha256(recordings: Sequence[Recording], *more: object) -> str:
    """Of what is continued, and how: names, texts, every byte of the sound, and ``more``."""
    digest = hashlib.sha256(repr(more).encode())
    for one in recordings:
        told = (one.id, one.text, one.words, one.start_s, one.duration_s)
        digest.update(repr(told).encode())
        if one.audio is not None and one.audio.is_file():
            digest.update(sha256_of(one.audio).encode())
        elif one.cut is not None:
            digest.update(one.load(16_000).numpy().tobytes())
    return digest.hexdigest()


def seed_of(seed: int, name: str, sample: int = 0) -> int:
    """The seed of one continuation, which no other recording has a say in."""
    return zlib.crc32(f"{seed} {sample} {name}".encode(errors="backslashreplace"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """A recording in two parts, at the tokenizer's rate."""

    recording: Recording
    prompt: Tensor
    """float32 [T]."""
    rest: Tensor
    """What was really said next, cut to the protocol's length, float32 [T]."""
    rest_s: float
    units: Units
    """Of the prompt."""


def hear(model: SpeechLM, recording: Recording, protocol: Protocol) -> Heard:
    """Read a recording and tokenize its prompt.

    Raises:
        AudioError: It cannot be used.
        InputError: It is no longer than its prompt.
    """
    rate = model.tokenizer.sample_rate
    wave = recording.load(rate)
    at = round(protocol.prompt_s * rate)
    rest = wave[at : at + round(protocol.continuation_s * rate)]
    if len(rest) < LEAST_HEARD_S * rate:
        raise InputError(
            f"{recording.source}: expected a recording longer than its prompt of "
            f"{protocol.prompt_s:g} s, got {len(wave) / rate:g} s"
        )
    prompt = wave[:at]
    units = model.encode(prompt, rate)
    return Heard(
        recording=recording, prompt=prompt, rest=rest, rest_s=len(rest) / rate, units=units
    )


def bounded(model: SpeechLM, protocol: Protocol, sampling: SamplingConfig) -> SamplingConfig:
    """The sampling with as many LM positions as the longest continuation can take.

    Raises:
        InputError: The LM's layout takes no speech by itself.
    """
    tokenizer = model.tokenizer
    sizes = getattr(tokenizer, "codebook_sizes", (tokenizer.vocab_size,) * tokenizer.num_codebooks)
    frames = torch.arange(math.ceil(protocol.continuation_s * tokenizer.frame_rate))
    # No unit comes twice in a row, so that a layout that merges repeats finds none.
    codes = torch.stack([frames % size for size in sizes])
    prompt = model.lm.layout.prompt(model.lm.vocabulary, {"speech": codes})
    return replace(sampling, max_units=max(1, len(prompt)))


def apart(work: Callable[[Sequence[T]], list[Units]], todo: Sequence[T]) -> list[Units | str]:
    """Do work on a batch; where it is refused, find out for whom, and say why instead."""
    if not todo:
        return []
    try:
        return list(work(todo))
    except InputError as error:
        if len(todo) == 1:
            return [str(error)]
        half = len(todo) // 2
        return apart(work, todo[:half]) + apart(work, todo[half:])


def portions(todo: Sequence[T], size: int = AT_ONCE) -> Iterator[Sequence[T]]:
    for first in range(0, len(todo), size):
        yield todo[first : first + size]


def try_hear(
    model: SpeechLM, recordings: Sequence[Recording], protocol: Protocol
) -> dict[str, Heard | str]:
    """:func:`hear` each, by id; why not, for one that cannot be used."""
    found: dict[str, Heard | str] = {}
    for recording in recordings:
        try:
            found[recording.id] = hear(model, recording, protocol)
        except (SpeechLMError, OSError) as error:
            found[recording.id] = str(error)
    return found


def transcribe(
    recognizer: SpeechRecognizer, waves: Sequence[Tensor], sample_rate: int
) -> list[str]:
    """The words of each recording; none of what is too short to hold any."""
    long_enough = [len(wave) >= LEAST_HEARD_S * sample_rate for wave in waves]
    heard = iter(
        recognizer.transcribe_many(
            [wave for wave, is_long in zip(waves, long_enough, strict=True) if is_long],
            sample_rate,
        )
    )
    return [" ".join(next(heard).split()) if is_long else "" for is_long in long_enough]
