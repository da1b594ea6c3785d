"""What a session may choose: rates, how turns are found, how answers are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from speechlm.config import SamplingConfig
from speechlm.errors import ConfigError

RATES = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Rates of a session's sound, Hz, in and out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnSettings:
    """When the user has begun to speak, and when it is the model's turn."""

    policy: str = "vad"
    """A registered policy: ``vad`` ends a turn after so much silence, ``unit-lm`` and
    ``smart-turn`` ask a model at each pause whether it was the end."""
    threshold: float = 0.5
    """From this probability on, a window of sound is speech."""
    start_s: float = 0.064
    """So much speech begins a turn: a click is none."""
    prefix_s: float = 0.3
    """Sound before its onset that belongs to a turn."""
    silence_s: float = 0.5
    """So much silence ends a turn; for models of ends, after so much they are asked."""
    patience_s: float = 4.0
    """For models of ends: so much silence ends a turn whatever they say."""
    end_probability: float = 0.5
    """For models of ends: from here on they are believed."""
    backchannel_s: float = 0.7
    """Speech over an answer that is shorter does not cancel it; the answer waits meanwhile."""
    respond: bool = True
    """Answer when a turn has ended."""
    interrupt: bool = True
    """The user's speech cancels an answer."""

    def __post_init__(self) -> None:
        if not (0 < self.threshold < 1 and 0 <= self.end_probability <= 1):
            raise ConfigError(
                "expected threshold and end_probability within 0..1, got "
                f"{self.threshold} and {self.end_probability}"
            )
        for name in ("start_s", "prefix_s", "silence_s", "patience_s", "backchannel_s"):
            if not 0 <= getattr(self, name) <= 60:
                raise ConfigError(f"expected {name} within 0..60 s, got {getattr(self, name)}")


PRESETS: Mapping[str, TurnSettings] = {
    "openai": TurnSettings(),
    "pipecat": TurnSettings(threshold=0.7, start_s=0.2, silence_s=0.2),
    "patient": TurnSettings(silence_s=1.0),
    "quick": TurnSettings(silence_s=0.25),
    "semantic": TurnSettings(policy="unit-lm", silence_s=0.2),
}
"""Turn settings by name: OpenAI's server VAD, pipecat's, and some that users ask for."""


def turn_preset(name: str) -> TurnSettings:
    """Settings by name.

    Raises:
        ConfigError: No such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown turn preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionSettings:
    """One conversation. What changes it during a session is a new whole value."""

    input_rate: int = 24_000
    """Of the sound that is heard, Hz."""
    output_rate: int = 24_000
    """Of the sound that is said, Hz."""
    turns: TurnSettings | None = field(default_factory=TurnSettings)
    """None: push to talk, the client says when a turn ends. Duplex models know for themselves."""
    sampling: SamplingConfig | None = None
    """None: the most probable unit each time; of duplex models, among probable ones."""
    seed: int = 0
    """Of the first answer; each further one has the next."""
    modality: Literal["audio", "text"] = "audio"
    """What answers are given as; ``text`` where the bundle says text."""
    voice: str | None = None
    """A voice that the vocoder knows; None for the bundle's."""
    history_turns: int = 0
    """Earlier questions with their answers that the LM sees before the present one. A bundle
    that was trained on single questions is best at 0."""
    max_answer_s: float = 30.0
    """Longest answer."""
    lead_s: float = 0.3
    """How far ahead of what is being heard sound is let out; 0 for as soon as it is there."""
    continuous: bool = False
    """Duplex models: every frame is let out, silence too (Moshi's protocol)."""

    def __post_init__(self) -> None:
        for name in ("input_rate", "output_rate"):
            if getattr(self, name) not in RATES:
                raise ConfigError(
                    f"expected {name} of {', '.join(map(str, RATES))} Hz, got {getattr(self, name)}"
                )
        if not 0.1 <= self.max_answer_s <= 600:
            raise ConfigError(f"expected max_answer_s within 0.1..600 s, got {self.max_answer_s}")
        if not 0 <= self.history_turns <= 100:
            raise ConfigError(f"expected history_turns within 0..100, got {self.history_turns}")

    def with_turns(self, turns: TurnSettings | None) -> SessionSettings:
        return replace(self, turns=turns)
