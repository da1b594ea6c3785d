"""Users that are played: a recording as it is, or a script that listens to the model.

A script is YAML or JSON: one dialogue, or several under ``dialogues``.

::

    id: interrupted            # names the folder of the result
    voice: en-us+Annie         # an embedded voice: accent+variant
    user:                      # steps, one after another
      - say: what is the capital of italy
      - until: answer          # the model begins to be heard; 'silence': it is heard no more
        within: 10             # seconds, then the script goes on anyway
      - wait: 0.4              # seconds of silence
      - say: mhm
        as: backchannel        # a name for it in the events
      - play: stop.wav         # a recording, looked for beside the script
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import yaml
from torch import Tensor

from speechlm.audio import resample
from speechlm.data.espeak import Voice
from speechlm.data.rendering import SAMPLE_RATE, say
from speechlm.errors import ConfigError
from speechlm.evaluation.interaction.voice_activity import load_channels

SILENCE_S = 1.0
"""So long nothing was heard of the model when ``until: silence`` is fulfilled."""
WITHIN_S = 10.0
"""How long ``until`` waits unless it says so."""
STEPS = ("say", "play", "wait", "until")


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """What a user knows of the model when a stretch of time begins."""

    num_answers: int
    """Answers of which something was played."""
    silent_s: float
    """How long nothing has been played, nor is about to be."""


class User(Protocol):
    """Somebody who speaks; ``log`` says what they did, with times in samples as ``at``."""

    log: list[dict[str, Any]]
    patient: bool
    """Whether the model may finish once this user has nothing more to say."""

    def speak(self, count: int, heard: Heard) -> Tensor:
        """The next ``count`` samples, float32; fewer once it is over."""
        ...


class RecordedUser:
    """Plays a recording, whatever the model does; the dialogue is as long as that."""

    patient = False

    def __init__(self, wave: Tensor) -> None:
        """Take float32 [T] at the rate of the simulation."""
        self._wave = wave
        self._at = 0
        self.log: list[dict[str, Any]] = []

    def speak(self, count: int, heard: Heard) -> Tensor:
        part = self._wave[self._at : self._at + count]
        self._at += len(part)
        return part


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One line of a script."""

    kind: Literal["say", "play", "wait", "until"]
    value: Any
    label: str = ""
    within_s: float = WITHIN_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """One dialogue."""

    id: str
    voice: Voice
    steps: tuple[Step, ...]
    folder: Path
    """Where its recordings are looked for."""


class ScriptedUser:
    """Follows a script."""

    patient = True

    def __init__(self, script: Script, sample_rate: int) -> None:
        """Speak and load all there is to say.

        Raises:
            AudioError: A recording cannot be used.
            CorpusError: The voice is unknown, or said nothing.
            PluginError: The voices are not installed.
        """
        self._rate = sample_rate
        self._steps = list(script.steps)
        self._waves = [_wave(step, script, sample_rate) for step in script.steps]
        self._at = 0
        self._left: Tensor | None = None
        """What is left of the step that is being said."""
        self._waited = 0
        self._answers_before = 0
        """When the user last began to speak."""
        self.log: list[dict[str, Any]] = []

    def speak(self, count: int, heard: Heard) -> Tensor:
        parts: list[Tensor] = []
        while count and self._steps:
            part = self._part(self._steps[0], count, heard)
            if part is None:
                self._steps.pop(0)
                self._waves.pop(0)
                continue
            parts.append(part)
            count -= len(part)
            self._at += len(part)
        return torch.cat(parts) if parts else torch.zeros(0)

    def _part(self, step: Step, count: int, heard: Heard) -> Tensor | None:
        """At most ``count`` samples of a step; None once it is over."""
        if step.kind == "until":
            return self._listen(step, count, heard)
        if self._left is None:
            self._left = self._waves[0]
            if step.kind != "wait":
                self._answers_before = heard.num_answers
                self._note(step, "user.started")
        part, self._left = self._left[:count], self._left[count:]
        if len(part):
            return part
        self._left = None
        if step.kind != "wait":
            self._note(step, "user.stopped")
        return None

    def _listen(self, step: Step, count: int, heard: Heard) -> Tensor | None:
        begun = heard.num_answers > self._answers_before
        fulfilled = begun if step.value == "answer" else heard.silent_s >= SILENCE_S
        left = round(step.within_s * self._rate) - self._waited
        if fulfilled or left <= 0:
            if not fulfilled:
                self._note(step, "user.waited_in_vain")
            self._waited = 0
            return None
        part = torch.zeros(min(count, left))
        self._waited += len(part)
        return part

    def _note(self, step: Step, what: str) -> None:
        named = {"as": step.label} if step.label else {}
        self.log.append({"at": self._at, "type": what, step.kind: str(step.value), **named})


def read_scripts(path: Path) -> list[Script]:
    """The dialogues of a script.

    Raises:
        ConfigError: It is none; the message names the place.
    """
    try:
        text = path.read_text(encoding="utf-8")
        told = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: expected a script as YAML or JSON ({reason})") from error
    if not isinstance(told, Mapping):
        raise ConfigError(
            f"{path}: expected a dialogue with id and user, got {type(told).__name__}"
        )
    dialogues = told.get("dialogues", [told])
    if not isinstance(dialogues, Sequence) or isinstance(dialogues, str) or not dialogues:
        raise ConfigError(f"{path}: expected dialogues, a list, got {dialogues!r}")
    scripts = [
        _script(path, told, dialogue, number) for number, dialogue in enumerate(dialogues, start=1)
    ]
    names = [script.id for script in scripts]
    for name in names:
        if names.count(name) > 1 or not name or "/" in name or name.startswith("."):
            raise ConfigError(f"{path}: expected an id of its own for each dialogue, got {name!r}")
    return scripts


def _script(path: Path, common: Mapping[str, Any], told: Any, number: int) -> Script:
    where = f"{path}, dialogue {number}"
    if not isinstance(told, Mapping) or not isinstance(told.get("user"), list):
        raise ConfigError(f"{where}: expected user, a list of steps, got {told!r}")
    if unknown := set(told) - {"id", "voice", "user"}:
        raise ConfigError(f"{where}: expected id, voice and user, got {', '.join(sorted(unknown))}")
    accent, _, variant = str(told.get("voice", common.get("voice", "en-us"))).partition("+")
    return Script(
        id=str(told.get("id", path.stem if number == 1 else f"{path.stem}-{number}")),
        voice=Voice(name=accent, variant=variant or None),
        steps=tuple(
            _step(f"{where}, step {at}", step) for at, step in enumerate(told["user"], start=1)
        ),
        folder=path.parent,
    )


def _step(where: str, told: Any) -> Step:
    kinds = [kind for kind in STEPS if isinstance(told, Mapping) and kind in told]
    if len(kinds) != 1:
        raise ConfigError(f"{where}: expected one of {', '.join(STEPS)}, got {told!r}")
    (kind,) = kinds
    value = told[kind]
    allowed = {kind, *({"within"} if kind == "until" else {"as"} if kind in STEPS[:2] else ())}
    if unknown := set(told) - allowed:
        raise ConfigError(f"{where}: {kind} does not take {', '.join(map(str, unknown))}")
    times = (
        {"wait": value, "within": told.get("within", 0)}
        if kind == "wait"
        else {"within": told.get("within", 0)}
    )
    for name, number in times.items():
        if not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number < 1e5:
            raise ConfigError(f"{where}: expected {name} in seconds, got {number!r}")
    if kind == "until" and value not in ("answer", "silence"):
        raise ConfigError(f"{where}: expected until answer or silence, got {value!r}")
    return Step(
        kind=kind,  # type: ignore[arg-type]
        value=value,
        label=str(told.get("as", "")),
        within_s=float(told.get("within", WITHIN_S)),
    )


def _wave(step: Step, script: Script, sample_rate: int) -> Tensor:
    match step.kind:
        case "say":
            wave, _, _ = say(str(step.value), script.voice, None)
            return resample(wave, SAMPLE_RATE, sample_rate)
        case "play":
            wave = load_channels(script.folder / str(step.value)).mean(dim=0)
            return resample(wave, SAMPLE_RATE, sample_rate)
        case "wait":
            return torch.zeros(round(step.value * sample_rate))
        case "until":
            return torch.zeros(0)
