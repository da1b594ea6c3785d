"""The recordings of a listening test: matched by name, measured, levelled, filtered, made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from speechlm.audio import EXTENSIONS, load_audio
from speechlm.data.espeak import Voice, restart, speak
from speechlm.errors import CorpusError, InputError

ANCHOR_HZ = 3500.0
STOP_HZ = 4000.0
"""From here on nothing of the anchor is left; BS.1534-3 asks for 25 dB less at 4 kHz."""
LEVEL_DB = -26.0
"""Of the mean square of a full scale's 1: the level that speech is commonly brought to."""
PEAK = 0.98


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sound:
    """One recording, as it will be heard."""

    wave: Tensor
    """float32 [T]."""
    sample_rate: int
    """Hz."""
    channels: int = 1
    """What the file had, before it was mixed down to one."""

    @property
    def level_db(self) -> float:
        """Its mean square, dB below full scale."""
        return 10 * math.log10(float(self.wave.double().square().mean()))

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.sample_rate

    def scaled(self, gain: float) -> Sound:
        return Sound(wave=self.wave * gain, sample_rate=self.sample_rate, channels=self.channels)


def read_systems(folders: Sequence[Path]) -> dict[str, dict[str, Sound]]:
    """The recordings of each folder by their names without suffix; all have the same ones.

    Returns:
        Name of the system (of its folder, or its path where two folders have one name), then of
        the recording.

    Raises:
        InputError: A folder is missing, or named twice.
        CorpusError: One holds no recordings, or not those of the others.
        AudioError: A recording cannot be used.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"{', '.join(map(str, folders))}: expected different folders")
    found = {folder: _paths(folder) for folder in folders}
    first = folders[0]
    for folder in folders[1:]:
        for one, other in ((first, folder), (folder, first)):
            if missing := sorted(found[one].keys() - found[other].keys()):
                raise CorpusError(
                    f"{other} lacks {len(missing)} of the {len(found[one])} recordings of {one}, "
                    f"the first {missing[0]}: expected the same file names in both"
                )
    distinct = len({folder.name for folder in folders}) == len(folders)
    return {
        folder.name if distinct else str(folder): {
            name: _read(path) for name, path in found[folder].items()
        }
        for folder in folders
    }


def _paths(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of a system's recordings")
    paths: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in EXTENSIONS and path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in paths:
                raise CorpusError(f"{paths[name]} and {path} have one name: expected one of them")
            paths[name] = path
    if not paths:
        raise CorpusError(f"{folder} holds no recordings; expected WAV, FLAC or the like")
    return paths


def _read(path: Path) -> Sound:
    """As it is, at its own rate: another rate is another sound."""
    try:
        about = soundfile.info(str(path))
    except soundfile.LibsndfileError:
        load_audio(path, 16_000)  # says in one line what is wrong with it
        raise
    return Sound(
        wave=load_audio(path, about.samplerate),
        sample_rate=about.samplerate,
        channels=about.channels,
    )


def same_loudness(systems: Mapping[str, Mapping[str, Sound]]) -> dict[str, dict[str, Sound]]:
    """Bring every recording to one mean square: -26 dB, or less where some peak would clip."""
    sounds = [sound for part in systems.values() for sound in part.values()]
    crests_db = [
        20 * math.log10(float(sound.wave.abs().max())) - sound.level_db for sound in sounds
    ]
    level_db = min(LEVEL_DB, 20 * math.log10(PEAK) - max(crests_db))
    return {
        name: {
            item: sound.scaled(10 ** ((level_db - sound.level_db) / 20))
            for item, sound in part.items()
        }
        for name, part in systems.items()
    }


def low_pass_anchor(sound: Sound) -> Sound:
    """What is left of a recording below 3.5 kHz.

    Source:
        ITU-R BS.1534-3, 5.1: the low-range anchor.
    """
    spectrum = torch.fft.rfft(sound.wave.double())
    hz = torch.fft.rfftfreq(len(sound.wave), 1 / sound.sample_rate, dtype=torch.float64)
    slope = ((hz - ANCHOR_HZ) / (STOP_HZ - ANCHOR_HZ)).clamp(0, 1)
    wave = torch.fft.irfft(spectrum * (0.5 + 0.5 * torch.cos(math.pi * slope)), len(sound.wave))
    return Sound(wave=wave.float(), sample_rate=sound.sample_rate)


def say_checks(texts: Sequence[str], level_db: float) -> list[Sound]:
    """Say what a listener shall answer, about as loud as the rest of the test.

    Raises:
        PluginError: The synthetic voice is not installed.
    """
    restart()
    sounds = []
    for text in texts:
        speech = speak(text, Voice(name="en-us", speed=140))
        sound = Sound(wave=torch.from_numpy(speech.samples), sample_rate=speech.sample_rate)
        gain = 10 ** ((level_db - sound.level_db) / 20)
        sounds.append(sound.scaled(min(gain, PEAK / float(sound.wave.abs().max()))))
    return sounds
