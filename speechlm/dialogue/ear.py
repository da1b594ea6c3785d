"""What a session hears: an exact clock, when there is speech, and the units of the turn so far."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speechlm.dialogue.resampling import StreamResampler
from speechlm.dialogue.voice_activity import SAMPLE_RATE, WINDOW, SpeechDetector
from speechlm.protocols import AudioTokenizer, TokenizerStream

MARGIN_S = 0.05
"""Around speech that a turn keeps, as the recordings that questions are learnt from do."""
QUIET_DB = -45.0
"""So far below its loudest moment a turn's end is no speech any more."""
ABOVE_NOISE_DB = 8.0
"""Speech is so far above what is heard beside it."""
BLOCK_S = 0.01
"""Loudness is measured in blocks of this length."""
HYSTERESIS = 0.15
"""Speech goes on until its probability is so far below what began it."""
MAX_TURN_S = 60.0
"""Of a longer turn the end is kept."""
WINDOW_S = WINDOW / SAMPLE_RATE
RECENT_S = 8.0
"""Sound that is kept for policies that hear it."""
PAST_S = 2.0
"""Sound that is kept before a turn: before speech is noticed it has gone on for a while."""


class _Tail:
    """The newest sound of a stream, with its place in it."""

    def __init__(self, length: int) -> None:
        self.length = length
        """Samples that are kept, at least."""
        self.end = 0
        """Samples that came."""
        self._parts: deque[Tensor] = deque()
        self._held = 0

    @property
    def start(self) -> int:
        """The first sample that is kept."""
        return self.end - self._held

    def push(self, samples: Tensor) -> None:
        self._parts.append(samples)
        self.end += len(samples)
        self._held += len(samples)
        while self._held - len(self._parts[0]) >= self.length:
            self._held -= len(self._parts.popleft())

    def since(self, start: int) -> Tensor:
        """From a sample on, or from the first that is kept."""
        return torch.cat([torch.zeros(0), *self._parts])[max(0, start - self.start) :]

    def clear(self) -> None:
        self._parts.clear()
        self._held = 0


@dataclass(kw_only=True, slots=True)
class _Utterance:
    """A stretch that may become a turn."""

    start: int
    """First sample, at the tokenizer's rate on the session's clock."""
    stream: TokenizerStream
    codes: deque[Tensor] = field(default_factory=deque)
    first_frame: int = 0
    """Of what is kept."""
    num_frames: int = 0
    """That came, those included that are not kept."""
    speech: tuple[float, float] | None = None
    """From and to, s on the session's clock."""
    sound: Tensor = field(default_factory=lambda: torch.zeros(0))
    """What does not fill a block of loudness yet."""
    energies: deque[float] = field(
        default_factory=lambda: deque(maxlen=round((MAX_TURN_S + PAST_S) / BLOCK_S))
    )
    """Of each block, the newest last."""
    num_blocks: int = 0
    """Of which the loudness was taken, those included that are not kept."""


class Ear:
    """Takes sound at the session's rate, in pieces of any size.

    Nothing that it says depends on how the sound was cut.
    """

    def __init__(self, tokenizer: AudioTokenizer, input_rate: int, threshold: float) -> None:
        self.input_rate = input_rate
        self.threshold = threshold
        self.num_samples = 0
        """That came, at the input's rate."""
        self._tokenizer = tokenizer
        self._loudness_block = round(BLOCK_S * tokenizer.sample_rate)
        self._held = torch.zeros(0)
        """What does not complete a window yet."""
        self._num_taken = 0
        """Samples before it."""
        self._num_ahead = 0
        """Of it, that the open turn was given already."""
        self._to_detector = StreamResampler(input_rate, SAMPLE_RATE)
        self._to_tokenizer = StreamResampler(input_rate, tokenizer.sample_rate)
        self._detector = SpeechDetector()
        self._num_windows = self._num_speech = self._num_silent = 0
        self._recent = _Tail(round(RECENT_S * SAMPLE_RATE))
        """For policies, at 16 kHz."""
        self._past = _Tail(0)
        """At the tokenizer's rate."""
        self.keep(0.0)
        self._utterance: _Utterance | None = None

    @property
    def heard_s(self) -> float:
        """Until the end of the last window, s on the session's clock."""
        return self._num_windows * WINDOW_S

    @property
    def speech_s(self) -> float:
        """How long speech has gone on without a pause; 0 in silence."""
        return self._num_speech * WINDOW_S

    @property
    def silence_s(self) -> float:
        """How long silence has; 0 in speech."""
        return self._num_silent * WINDOW_S

    def at(self, time_s: float) -> int:
        """A time on the session's clock, samples at the input's rate."""
        return max(0, round(time_s * self.input_rate))

    def keep(self, before_s: float) -> None:
        """Keep so much sound at least that a turn may begin with."""
        self._past.length = round((max(PAST_S, before_s) + MARGIN_S) * self._tokenizer.sample_rate)

    def push(self, samples: Tensor) -> Iterator[float]:
        """Take float32 [n]; give the probability of speech at each window, once it was heard.

        At each window no more was taken in than what completes it: so what comes of a window
        does not depend on how much came at once.
        """
        self.num_samples += len(samples)
        held, at = torch.cat([self._held, samples]), 0
        while len(held) - at >= (count := self._next_window() - self._num_taken):
            # Copies: a view would keep all that came at once.
            part, at = held[at : at + count].clone(), at + count
            self._held = held[at:]
            self._num_taken += count
            self._take(part[self._num_ahead :])
            self._num_ahead = 0
            resampled = self._to_detector.push(part)
            self._recent.push(resampled)
            (probability,) = self._detector.push(resampled)
            self._notice(probability)
            yield probability
        self._held = held[at:].clone()

    def catch_up(self) -> None:
        """Give the open turn what came since the last window: it may end here."""
        self._take(self._held[self._num_ahead :])
        self._num_ahead = len(self._held)

    def _next_window(self) -> int:
        """Samples in all that the next window needs."""
        whole = -(-(self._num_windows + 1) * WINDOW * self.input_rate // SAMPLE_RATE)
        return whole + self._to_detector.delay

    def _notice(self, probability: float) -> None:
        """Count a window as speech or as silence."""
        begin_s = self.heard_s
        self._num_windows += 1
        if probability >= self.threshold - HYSTERESIS * (self._num_speech > 0):
            self._num_speech += 1
            self._num_silent = 0
            if self._utterance is not None:
                first = begin_s if self._utterance.speech is None else self._utterance.speech[0]
                self._utterance.speech = (first, self.heard_s)
        else:
            self._num_silent += 1
            self._num_speech = 0

    def begin(self, start_s: float | None = None, onset_s: float | None = None) -> None:
        """Open a turn that began at ``start_s``, as far back as sound is kept, or that begins
        now; speech was heard since ``onset_s``."""
        rate = self._tokenizer.sample_rate
        start = self._past.end if start_s is None else round(start_s * rate)
        start = min(max(start, self._past.start), self._past.end)
        self._utterance = _Utterance(start=start, stream=self._tokenizer.stream())
        if onset_s is not None:
            self._utterance.speech = (onset_s, self.heard_s)
        self._feed(self._past.since(start))

    def forget(self) -> None:
        """Forget the turn, and that there ever was sound before now."""
        self.drop()
        self._past.clear()
        self._recent.clear()
        self._num_speech = 0

    def drop(self) -> None:
        """Forget the turn."""
        self._utterance = None

    @property
    def listening(self) -> bool:
        """Whether a turn is open."""
        return self._utterance is not None

    @property
    def start_s(self) -> float:
        """Where the open turn began, s on the clock; now where there is none."""
        start = self._past.end if self._utterance is None else self._utterance.start
        return start / self._tokenizer.sample_rate

    @property
    def turn_s(self) -> float:
        """Length of the open turn so far, s."""
        if self._utterance is None:
            return 0.0
        return (self._num_taken + self._num_ahead) / self.input_rate - self.start_s

    @property
    def speech(self) -> tuple[float, float] | None:
        """Of the open turn: from the first speech to the last, s on the clock."""
        return None if self._utterance is None else self._utterance.speech

    def units(self) -> Tensor:
        """Of the open turn so far, from a little before speech to a little after, int64 [K, F]."""
        utterance = self._utterance
        if utterance is None or not utterance.codes:
            return torch.zeros(self._tokenizer.num_codebooks, 0, dtype=torch.int64)
        codes = torch.cat([*utterance.codes], dim=1)
        if utterance.speech is None or self._variable_rate:
            return codes
        first, last = (at - utterance.first_frame for at in self._frames_of_speech(utterance))
        return codes[:, max(0, first) : max(0, last)]

    def wave(self) -> Tensor:
        """Of the open turn, its last seconds at 16 kHz, float32 [T]."""
        return self._recent.since(self._recent.end - round(self.turn_s * SAMPLE_RATE))

    def finish(self) -> Tensor:
        """Close the turn where speech ended, or where it is now; its units int64 [K, F]."""
        utterance = self._utterance
        if utterance is not None and (
            utterance.speech is None
            or self._variable_rate
            or self._frames_of_speech(utterance)[1] > utterance.num_frames
        ):  # some of its units wait for sound that comes after it
            utterance.codes.append(utterance.stream.finish())
        codes = self.units()
        self.drop()
        return codes

    @property
    def _variable_rate(self) -> bool:
        return bool(getattr(self._tokenizer, "variable_rate", False))

    def _frames_of_speech(self, utterance: _Utterance) -> tuple[int, int]:
        """From and to, in frames since the turn began."""
        start_s = utterance.start / self._tokenizer.sample_rate
        begin_s, end_s = self._speech_by_loudness(utterance)
        first, last = (
            round((time_s - start_s) * self._tokenizer.frame_rate)
            for time_s in (begin_s - MARGIN_S, end_s + MARGIN_S)
        )
        return first, last

    def _speech_by_loudness(self, utterance: _Utterance) -> tuple[float, float]:
        """From and to, s: nearer to the first and last sound than windows of the detector are."""
        assert utterance.speech is not None
        # Of the first block that is kept.
        start_s = utterance.start / self._tokenizer.sample_rate
        block_s = self._loudness_block / self._tokenizer.sample_rate
        start_s += (utterance.num_blocks - len(utterance.energies)) * block_s
        energies = 10 * torch.tensor([*utterance.energies]).clamp(min=1e-12).log10()
        first, last = (round((time_s - start_s) / block_s) for time_s in utterance.speech)
        first, last = max(0, first), min(len(energies), last)
        if first >= last:
            return utterance.speech
        beside = torch.cat([energies[:first], energies[last:]])
        noise = float(beside.median()) if len(beside) else -math.inf
        threshold = max(float(energies.max()) + QUIET_DB, noise + ABOVE_NOISE_DB)
        # The detector notices a soft beginning late.
        first = max(0, first - round(2 * WINDOW_S / block_s))
        loud = (energies[first:last] >= threshold).nonzero()
        if not len(loud):
            return utterance.speech
        return (
            start_s + (first + int(loud[0])) * block_s,
            start_s + (first + int(loud[-1]) + 1) * block_s,
        )

    def _take(self, samples: Tensor) -> None:
        samples = self._to_tokenizer.push(samples)
        self._past.push(samples)
        if self._utterance is not None:
            self._feed(samples)

    def _feed(self, samples: Tensor) -> None:
        utterance = self._utterance
        assert utterance is not None
        sound = torch.cat([utterance.sound, samples])
        whole = len(sound) // self._loudness_block * self._loudness_block
        utterance.sound = sound[whole:].clone()
        energies = sound[:whole].reshape(-1, self._loudness_block).square().mean(dim=1).tolist()
        utterance.energies.extend(energies)
        utterance.num_blocks += len(energies)
        codes = utterance.stream.push(samples)
        if codes.shape[1]:
            utterance.codes.append(codes)
            utterance.num_frames += codes.shape[1]
        # The newest frames that are kept, in whole parts.
        oldest = utterance.num_frames - round(MAX_TURN_S * self._tokenizer.frame_rate)
        while utterance.codes and utterance.first_frame + utterance.codes[0].shape[1] < oldest:
            utterance.first_frame += utterance.codes.popleft().shape[1]
