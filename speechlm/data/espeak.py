"""Synthetic voices: espeak-ng from the ``espeakng-loader`` wheel, and flite where it is installed.

espeak-ng is GPL-3, hence an optional extra, ``speechlm[corpus]``. Its library keeps its
state in global variables: use one process each, never two threads.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import random
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speechlm.errors import CorpusError, PluginError

ACCENTS = {
    "en-us": "American",
    "en": "British",
    "en-gb-x-rp": "Received Pronunciation",
    "en-gb-scotland": "Scottish",
    "en-us-nyc": "New York",
    "en-029": "Caribbean",
    "en-gb-x-gbclan": "Lancaster",
    "en-gb-x-gbcwmd": "West Midlands",
}
"""English of espeak-ng, by its language code."""

EFFECTS = re.compile(
    r"whisper|caleb|croak|demonic|robo|announcer|fast|tweaky|kaukovalta|reed", re.IGNORECASE
)
"""Variants left out as they are effects rather than people: no voicing, echoes, robots, jokes;
and Reed, whose breath is drawn from memory that the library never set: no two runs agree."""

NOT_UNDERSTOOD = frozenset(
    {"AnxiousAndy", "Alicia", "Lee", "boris", "ian", "marcelo", "shelby", "zac"}
)
"""Variants left out as their formants are where no mouth has them: of 16 plain questions each,
pocketsphinx, choosing among a hundred questions, understood none or one (others: up to 16)."""

PHONE_MARKS = re.compile(r"[',%=_:|;]")
"""Stress, length and joints in the engine's phone names."""
FLITE_VOICES = ("slt", "rms", "awb", "kal16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """A speaker and how they speak just now."""

    engine: Literal["espeak", "flite"] = "espeak"
    name: str = "en-us"
    """espeak-ng: one of :data:`ACCENTS`; flite: one of :data:`FLITE_VOICES`."""
    variant: str | None = None
    """espeak-ng's variant, a file of its ``voices/!v``; None for the plain voice."""
    pitch: int = 50
    """0 (low) to 99 (high); 50 is the voice's own."""
    pitch_range: int = 50
    """0 (monotone) to 99 (lively)."""
    speed: int = 165
    """Words a minute, 80 to 450."""

    def __post_init__(self) -> None:
        for name, value in (("pitch", self.pitch), ("pitch_range", self.pitch_range)):
            if not 0 <= value <= 99:
                raise CorpusError(f"a voice's {name}: expected 0 to 99, got {value}")
        if not 80 <= self.speed <= 450:
            raise CorpusError(
                f"a voice's speed: expected 80 to 450 words a minute, got {self.speed}"
            )

    @property
    def speaker(self) -> str:
        """Who speaks, whatever the pitch and speed; usable in file names."""
        parts = (self.engine, self.name, self.variant)
        return "-".join(re.sub(r"\W+", "_", part.lower()) for part in parts if part)


@dataclass(frozen=True, slots=True)
class Speech:
    """What a voice said."""

    samples: NDArray[np.float32]
    """float32 [T] in -1..1."""
    sample_rate: int
    """Hz."""
    words: tuple[tuple[str, float, float], ...]
    """Each word with its start and end, seconds; empty where the engine does not tell."""
    phones: tuple[tuple[str, float, float], ...] = ()
    """The same for phones, in the engine's own letters (ASCII, after Kirshenbaum)."""


def list_voices(seed: int) -> list[Voice]:
    """Every speaker there is, in an order that depends on the seed alone.

    First one voice a variant, each with an accent drawn for it, so that as many as possible
    differ in more than accent; flite's are among these. Then the variants again in their
    other accents.

    Raises:
        PluginError: The wheel is not installed.
    """
    variants = sorted(
        path.name
        for path in (_data_folder() / "voices" / "!v").iterdir()
        if not EFFECTS.search(path.name) and path.name not in NOT_UNDERSTOOD
    )
    draw = random.Random(f"voices {seed}")
    accents = list(ACCENTS)
    order = [draw.sample(accents, len(accents)) for _ in variants]
    rounds = []
    for turn in range(len(accents)):
        one_each = [Voice(name=order[i][turn], variant=v) for i, v in enumerate(variants)]
        if turn == 0 and shutil.which("flite"):
            one_each += [Voice(engine="flite", name=name) for name in FLITE_VOICES]
        rounds += draw.sample(one_each, len(one_each))
    return rounds


def speak(text: str, voice: Voice) -> Speech:
    """Say a text.

    Raises:
        PluginError: The wheel is not installed, or the program ``flite`` is gone.
        CorpusError: The engine does not know the voice, or said nothing.
    """
    speech = _flite(text, voice) if voice.engine == "flite" else _Espeak.get().speak(text, voice)
    if np.abs(speech.samples).max(initial=0.0) < 1e-3:
        raise CorpusError(f"{voice.speaker} says nothing for {text!r}; expected words to speak")
    return speech


def spell(text: str, voice: Voice) -> list[str]:
    """The phones by which espeak-ng would say a text, stress marks included, in its own letters.

    ``speak(f"[[{' '.join(phones)}]]", voice)`` says them; change one, and it is another word.
    """
    return _Espeak.get().spell(text, voice)


def restart() -> None:
    """Forget what was said: the same texts said next give the same samples, bit for bit.

    Some voices (flutter, echo) continue from where the last utterance stopped, and the
    library has no call that resets them; only loading it afresh does, in about 2 ms.
    """
    if _Espeak.get.cache_info().currsize:
        _Espeak.get().close()
        _Espeak.get.cache_clear()


def _data_folder() -> Path:
    try:
        import espeakng_loader
    except ImportError:
        raise PluginError(
            "speaking needs espeak-ng, which is not installed; pip install 'speechlm[corpus]'"
        ) from None
    return Path(espeakng_loader.get_data_path())


# What follows mirrors espeak-ng's speak_lib.h, version 1.52.
_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_EVENT_END, _EVENT_WORD, _EVENT_PHONE = 0, 1, 7
_TELL_PHONES = 1
_READ_PHONES = 0x100
"""Text within double brackets is phones."""
_BETWEEN_PHONES = ord(" ") << 8


class _EventId(ctypes.Union):
    _fields_ = [
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    ]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class _Espeak:
    """The library of this process."""

    @staticmethod
    @functools.cache
    def get() -> _Espeak:
        return _Espeak()

    def __init__(self) -> None:
        data = _data_folder()
        import espeakng_loader

        try:
            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        except OSError as error:
            raise PluginError(
                f"espeak-ng's library cannot be loaded ({error}); "
                "reinstall it: pip install --force-reinstall espeakng-loader"
            ) from error
        self._sample_rate = self._library.espeak_Initialize(
            _SYNCHRONOUS, 0, str(data).encode(), _TELL_PHONES
        )
        if self._sample_rate < 1:
            raise PluginError(f"espeak-ng cannot read its data in {data}; reinstall it")
        self._pieces: list[NDArray[np.int16]] = []
        self._starts: list[tuple[int, int, float]] = []
        self._phones: list[tuple[str, float]] = []
        # ctypes keeps no reference to a callback: it must live as long as the library.
        self._callback = _Callback(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def close(self) -> None:
        self._library.espeak_Terminate()
        _ctypes.dlclose(self._library._handle)

    def spell(self, text: str, voice: Voice) -> list[str]:
        self._choose(voice)
        tell = self._library.espeak_TextToPhonemes
        tell.restype = ctypes.c_char_p
        words = []
        raw = ctypes.create_string_buffer(text.encode())
        left = ctypes.c_void_p(ctypes.addressof(raw))
        while left.value:  # a clause at a time
            words.append(tell(ctypes.byref(left), _CHARS_UTF8, _BETWEEN_PHONES).decode())
        return " ".join(words).split()

    def _choose(self, voice: Voice) -> None:
        name = f"{voice.name}+{voice.variant}" if voice.variant else voice.name
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise CorpusError(f"espeak-ng has no voice {name!r}; expected one of list_voices()")
        for parameter, value in (
            (_RATE, voice.speed),
            (_PITCH, voice.pitch),
            (_RANGE, voice.pitch_range),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)

    def speak(self, text: str, voice: Voice) -> Speech:
        self._choose(voice)
        # Breathy voices draw from the C library's generator.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._pieces, self._starts, self._phones = [], [], []
        raw = text.encode() + b"\0"
        flags = _CHARS_UTF8 | (_READ_PHONES if text.startswith("[[") else 0)
        status = self._library.espeak_Synth(
            raw, ctypes.c_size_t(len(raw)), 0, _POSITION_CHARACTER, 0, flags, None, None
        )
        if status != 0:
            raise CorpusError(f"espeak-ng failed on {text!r} (status {status})")
        samples = np.concatenate(self._pieces or [np.zeros(0, np.int16)])
        return Speech(
            samples=samples.astype(np.float32) / np.float32(32768),
            sample_rate=self._sample_rate,
            words=_word_times(text, self._starts, len(samples) / self._sample_rate),
            phones=_phone_times(self._phones, len(samples) / self._sample_rate),
        )

    def _receive(self, wave: object, count: int, events: object) -> int:
        if wave and count > 0:
            self._pieces.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while (event := events[index]).type != _EVENT_END:  # type: ignore[index]
            if event.type == _EVENT_WORD:
                start = event.text_position - 1
                self._starts.append((start, event.length, event.audio_position_ms / 1000))
            elif event.type == _EVENT_PHONE:
                name = event.id.string.decode("utf-8", errors="replace")
                self._phones.append((name, event.audio_position_ms / 1000))
            index += 1
        return 0


def _word_times(
    text: str, starts: list[tuple[int, int, float]], duration_s: float
) -> tuple[tuple[str, float, float], ...]:
    """Each word lasts until the next begins; the engine tells starts only."""
    words: list[tuple[str, float, float]] = []
    starts = [*starts, (len(text), 0, duration_s)]
    for (position, length, start_s), (_, _, end_s) in pairwise(starts):
        words.append((text[position : position + length], start_s, max(start_s, end_s)))
    return tuple(words)


def _phone_times(
    starts: list[tuple[str, float]], duration_s: float
) -> tuple[tuple[str, float, float], ...]:
    """Each phone lasts until the next; what has no name is a pause, and marks are left out."""
    phones: list[tuple[str, float, float]] = []
    for (name, start_s), (_, end_s) in pairwise([*starts, ("", duration_s)]):
        phone = PHONE_MARKS.sub("", name)
        if phone and end_s > start_s:
            phones.append((phone, start_s, end_s))
    return tuple(phones)


def _flite(text: str, voice: Voice) -> Speech:
    import soundfile

    program = shutil.which("flite")
    if program is None:
        raise PluginError(f"the voice {voice.speaker} needs the program flite, which is not there")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        # flite's mean pitch differs by voice: shift it by up to a quarter of an octave.
        shift = 2 ** ((voice.pitch - 50) / 200)
        settings = (
            f"duration_stretch={165 / voice.speed:.3f}",
            f"int_f0_target_mean={_FLITE_PITCH_HZ[voice.name] * shift:.1f}",
        )
        command = [program, "-voice", voice.name, "-t", text, "-o", str(path)]
        for setting in settings:
            command += ["--setf", setting]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not path.is_file():
            raise CorpusError(f"flite failed on {text!r}: {done.stderr.strip() or 'no output'}")
        samples, rate = soundfile.read(path, dtype="float32")
    return Speech(samples=samples, sample_rate=rate, words=())


_FLITE_PITCH_HZ = {"slt": 170.0, "rms": 105.0, "awb": 130.0, "kal16": 100.0}
