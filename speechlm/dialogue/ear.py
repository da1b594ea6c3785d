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
FEED_S = 0.08
"""The tokenizer gets a turn's sound in pieces of about this length, and the rest when units are
asked for: a call costs more than what a network's packet holds."""


@dataclass(kw_only=True, slots=True)
class _Utterance:
    """A stretch that may become a turn."""

    start: int
    """First sample, at the tokenizer's rate on the session's clock."""
    stream: TokenizerStream
    codes: list[Tensor]
    first_frame: int = 0
    """Of what is kept."""
    speech: tuple[float, float] | None = None
    """From and to, s on the session's clock."""
    waiting: list[Tensor] = field(default_factory=list)
    """What the tokenizer was not given yet."""
    sound: Tensor = field(default_factory=lambda: torch.zeros(0))
    """What does not fill a block of loudness yet."""
    energies: list[float] = field(default_factory=list)
    """Of each block since ``start``."""


class _Tail:
    """The last samples of a stream; joined only when they are read."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._pieces: deque[Tensor] = deque()
        self._count = 0

    def push(self, samples: Tensor) -> None:
        self._pieces.append(samples)
        self._count += len(samples)
        while self._count - len(self._pieces[0]) >= self._length:
            self._count -= len(self._pieces.popleft())

    def read(self) -> Tensor:
        """float32 [T], T <= length."""
        return torch.cat([torch.zeros(0), *self._pieces])[-self._length :]


class Ear:
    """Takes sound at the session's rate, in pieces of any size.

    Nothing that it says depends on how the sound was cut.
    """

    def __init__(self, tokenizer: AudioTokenizer, input_rate: int, threshold: float) -> None:
        self.input_rate = input_rate
        self.threshold = threshold
        self.heard_s = 0.0
        """Until the end of the last window."""
        self.speech_s = 0.0
        """How long speech has gone on without a pause; 0 in silence."""
        self.silence_s = 0.0
        """How long silence has; 0 in speech."""
        self.num_samples = 0
        """Heard, at the input's rate."""
        self._tokenizer = tokenizer
        self._to_detector = StreamResampler(input_rate, SAMPLE_RATE)
        self._to_tokenizer = StreamResampler(input_rate, tokenizer.sample_rate)
        self._detector = SpeechDetector()
        self._recent = _Tail(round(RECENT_S * SAMPLE_RATE))
        """For policies, at 16 kHz, up to the last sample that came."""
        # Before speech is noticed it has gone on for a while.
        self._past = _Tail(round((2 + MARGIN_S) * tokenizer.sample_rate))
        """Before a turn, at the tokenizer's rate."""
        self._past_end = 0
        self._utterance: _Utterance | None = None

    @property
    def now(self) -> int:
        """The end of the last window, samples at the input's rate."""
        return self.at(self.heard_s)

    def at(self, time_s: float) -> int:
        """A time on the session's clock, samples at the input's rate."""
        return max(0, round(time_s * self.input_rate))

    def push(self, samples: Tensor) -> Iterator[float]:
        """Take float32 [n]; give the probability of speech at each window, once it was heard."""
        self.num_samples += len(samples)
        resampled = self._to_detector.push(samples)
        same = self._tokenizer.sample_rate == SAMPLE_RATE
        self._take(resampled if same else self._to_tokenizer.push(samples))
        self._recent.push(resampled)
        for probability in self._detector.push(resampled):
            self.heard_s += WINDOW_S
            speaks = self.speech_s > 0
            if probability >= self.threshold - HYSTERESIS * speaks:
                self.speech_s += WINDOW_S
                self.silence_s = 0.0
                if self._utterance is not None:
                    begin = self.heard_s - WINDOW_S
                    first = begin if self._utterance.speech is None else self._utterance.speech[0]
                    self._utterance.speech = (first, self.heard_s)
            else:
                self.silence_s += WINDOW_S
                self.speech_s = 0.0
            yield probability

    def begin(self, start_s: float, onset_s: float | None = None) -> None:
        """Open a turn that began at ``start_s``, as far back as sound is kept; speech was heard
        since ``onset_s``."""
        rate = self._tokenizer.sample_rate
        past = self._past.read()
        oldest = self._past_end - len(past)
        start = min(max(round(start_s * rate), oldest), self._past_end)
        self._utterance = _Utterance(start=start, stream=self._tokenizer.stream(), codes=[])
        if onset_s is not None:
            self._utterance.speech = (onset_s, self.heard_s)
        self._utterance.waiting.append(past[start - oldest :])

    def drop(self) -> None:
        """Forget the turn."""
        self._utterance = None

    @property
    def listening(self) -> bool:
        """Whether a turn is open."""
        return self._utterance is not None

    @property
    def turn_s(self) -> float:
        """Length of the open turn so far, s."""
        if self._utterance is None:
            return 0.0
        return (self._past_end - self._utterance.start) / self._tokenizer.sample_rate

    @property
    def speech(self) -> tuple[float, float] | None:
        """Of the open turn: from the first speech to the last, s on the clock."""
        return None if self._utterance is None else self._utterance.speech

    def units(self) -> Tensor:
        """Of the open turn so far, from a little before speech to a little after, int64 [K, F]."""
        utterance = self._utterance
        if utterance is not None:
            self._feed(utterance)
        if utterance is None or not utterance.codes:
            return torch.zeros(self._tokenizer.num_codebooks, 0, dtype=torch.int64)
        codes = torch.cat(utterance.codes, dim=1)
        if utterance.speech is None or getattr(self._tokenizer, "variable_rate", False):
            return codes
        start_s = utterance.start / self._tokenizer.sample_rate
        begin_s, end_s = self._speech_by_loudness(utterance)
        first, last = (
            round((time_s - start_s) * self._tokenizer.frame_rate) - utterance.first_frame
            for time_s in (begin_s - MARGIN_S, end_s + MARGIN_S)
        )
        return codes[:, max(0, first) : max(0, last)]

    def wave(self) -> Tensor:
        """Of the open turn, its last seconds at 16 kHz, float32 [T]."""
        return self._recent.read()[-max(1, round(self.turn_s * SAMPLE_RATE)) :]

    def finish(self) -> Tensor:
        """Close the turn where speech ended, or where it is now; its units int64 [K, F]."""
        utterance = self._utterance
        if utterance is None:
            return self.units()
        self._feed(utterance)
        missing = 0.0
        if utterance.speech is not None:
            missing = utterance.speech[1] + MARGIN_S - self.heard_s
        if utterance.speech is None or missing > 0:  # sound after the end is not there yet
            utterance.codes.append(utterance.stream.finish())
        codes = self.units()
        self.drop()
        return codes

    def _speech_by_loudness(self, utterance: _Utterance) -> tuple[float, float]:
        """From and to, s: nearer to the first and last sound than windows of the detector are."""
        assert utterance.speech is not None
        start_s = utterance.start / self._tokenizer.sample_rate
        energies = 10 * torch.tensor(utterance.energies).clamp(min=1e-12).log10()
        first, last = (round((time_s - start_s) / BLOCK_S) for time_s in utterance.speech)
        first, last = max(0, first), min(len(energies), last)
        if first >= last:
            return utterance.speech
        beside = torch.cat([energies[:first], energies[last:]])
        noise = float(beside.median()) if len(beside) else -math.inf
        threshold = max(float(energies.max()) + QUIET_DB, noise + ABOVE_NOISE_DB)
        # The detector notices a soft beginning late.
        first = max(0, first - round(2 * WINDOW_S / BLOCK_S))
        loud = (energies[first:last] >= threshold).nonzero()
        if not len(loud):
            return utterance.speech
        return (
            start_s + (first + int(loud[0])) * BLOCK_S,
            start_s + (first + int(loud[-1]) + 1) * BLOCK_S,
        )

    def _take(self, samples: Tensor) -> None:
        self._past_end += len(samples)
        self._past.push(samples)
        if self._utterance is not None:
            self._utterance.waiting.append(samples)
            if sum(map(len, self._utterance.waiting)) >= FEED_S * self._tokenizer.sample_rate:
                self._feed(self._utterance)

    def _feed(self, utterance: _Utterance) -> None:
        """Give the tokenizer all that waits."""
        if not utterance.waiting:
            return
        samples = torch.cat(utterance.waiting)
        utterance.waiting.clear()
        block = round(BLOCK_S * self._tokenizer.sample_rate)
        sound = torch.cat([utterance.sound, samples])
        whole = len(sound) // block * block
        utterance.sound = sound[whole:]
        utterance.energies += sound[:whole].reshape(-1, block).square().mean(dim=1).tolist()
        codes = utterance.stream.push(samples)
        if codes.shape[1]:
            utterance.codes.append(codes)
        most = round(MAX_TURN_S * self._tokenizer.frame_rate)
        while sum(part.shape[1] for part in utterance.codes[1:]) > most:
            utterance.first_frame += utterance.codes.pop(0).shape[1]
