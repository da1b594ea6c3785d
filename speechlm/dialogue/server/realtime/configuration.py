"""The protocol's session object: what a client chose, what is in effect, and what it means here.

What a SpeechLM does not do is shown as it is in effect: no noise reduction, speed 1, no idle
prompts. Instructions and tools are kept and shown; no SpeechLM follows or calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from speechlm.dialogue.server.realtime.client_events import (
    JSON,
    Audio,
    Choices,
    Format,
    ProtocolError,
    SessionChoices,
    TurnDetection,
    VoiceId,
)
from speechlm.dialogue.server.realtime.formats import AudioFormat, format_from
from speechlm.dialogue.server.settings import ServerSettings
from speechlm.dialogue.service import BundleInfo
from speechlm.dialogue.settings import SessionSettings, TurnSettings, turn_preset
from speechlm.errors import InputError

OPENAI_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "marin", "sage", "shimmer", "verse")
)
"""Clients name one of these unasked: they mean the bundle's own voice."""
OWN_VOICE = "default"

PATIENCE_S: Mapping[str, float] = {"low": 8.0, "medium": 4.0, "auto": 4.0, "high": 2.0}
"""Longest silence by eagerness, as OpenAI documents it."""

KEPT = ("include", "parallel_tool_calls", "prompt", "reasoning", "tracing", "truncation")
"""Fields that mean nothing here and are shown as they came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """A session object with what it means; changed by :meth:`updated` only."""

    shown: JSON
    """As ``session.created`` and ``session.updated`` show it, in GA names."""
    server: ServerSettings
    info: BundleInfo

    @classmethod
    def first(
        cls, session_id: str, expires_at: int, server: ServerSettings, info: BundleInfo
    ) -> Self:
        """What holds before the client has said anything."""
        detection = None if info.kind == "duplex" else _shown_turns(turn_preset(server.turns))
        shown: JSON = {
            "type": "realtime",
            "object": "realtime.session",
            "id": session_id,
            "model": server.model,
            "expires_at": expires_at,
            "output_modalities": ["audio"],
            "instructions": "",
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "audio": {
                "input": {
                    "format": AudioFormat().shown(),
                    "transcription": None,
                    "noise_reduction": None,
                    "turn_detection": detection,
                },
                "output": {"format": AudioFormat().shown(), "voice": OWN_VOICE, "speed": 1.0},
            },
        }
        return cls(shown=shown, server=server, info=info)

    @property
    def input_format(self) -> AudioFormat:
        return format_from(self.shown["audio"]["input"]["format"])

    @property
    def output_format(self) -> AudioFormat:
        return format_from(self.shown["audio"]["output"]["format"])

    @property
    def wants_transcripts(self) -> bool:
        """Of what the user says."""
        return self.shown["audio"]["input"]["transcription"] is not None

    @property
    def wants_extensions(self) -> bool:
        return bool(self.shown.get("x_ext"))

    def settings(self) -> SessionSettings:
        """What the session is told."""
        voice = self.shown["audio"]["output"]["voice"]
        return SessionSettings(
            input_rate=self.input_format.rate,
            output_rate=self.output_format.rate,
            turns=self._turns(),
            modality=self.shown["output_modalities"][0],
            voice=None if voice == OWN_VOICE or voice in OPENAI_VOICES else voice,
            max_answer_s=self.longest_answer_s(self.shown["max_output_tokens"]),
        )

    def longest_answer_s(self, max_output_tokens: int | str) -> float:
        """A token is a frame of units."""
        if isinstance(max_output_tokens, str):
            return self.server.max_answer_s
        return min(self.server.max_answer_s, max(0.1, max_output_tokens * self.info.frame_s))

    def updated(
        self, choices: SessionChoices, *, rates_fixed: bool, voice_fixed: bool
    ) -> Configuration:
        """With the fields that were given; null clears, or is as good as not given.

        Args:
            choices: Of ``session.update``.
            rates_fixed: Sound was heard already.
            voice_fixed: Sound was said already.

        Raises:
            ProtocolError: A value that cannot be; nothing of the update holds then.
        """
        given = choices.given()
        shown: JSON = dict(self.shown)
        for key in ("instructions", "tools", "tool_choice", "max_output_tokens", "x_ext"):
            if given.get(key) is not None:
                shown[key] = given[key]
        for key in (*KEPT, "temperature"):
            if key in given:
                shown[key] = given[key]
        if choices.output_modalities is not None:
            shown["output_modalities"] = self.modalities(choices, "session")
        if choices.audio is not None:
            shown["audio"] = self._audio(choices.audio)
        new = replace(self, shown=shown)
        old_rates, new_rates = self._rates(), new._rates()
        if rates_fixed and old_rates != new_rates:
            raise ProtocolError(
                f"expected the rates of this session, {old_rates[0]} and {old_rates[1]} Hz, which "
                f"stay once sound was sent, got {new_rates[0]} and {new_rates[1]}; open another",
                code="invalid_value",
                param="session.audio",
            )
        if voice_fixed and new.settings().voice != self.settings().voice:
            raise ProtocolError(
                "expected the voice that has spoken already; choose one before the first answer",
                code="cannot_update_voice",
                param="session.audio.output.voice",
            )
        return new

    def modalities(self, choices: Choices, where: str) -> list[str]:
        """``["audio"]`` or ``["text"]``.

        Raises:
            ProtocolError: Both, none, or text of a bundle that writes none.
        """
        wanted = choices.output_modalities
        if wanted is None:
            return list(self.shown["output_modalities"])
        if len(wanted) != 1:
            raise ProtocolError(
                f'expected ["audio"] or ["text"], got {wanted}; sound comes with its text',
                code="invalid_value",
                param=f"{where}.output_modalities",
            )
        if wanted == ["text"] and not self.info.writes_text:
            raise ProtocolError(
                f'expected ["audio"], got ["text"]: {self.info.name} speaks and writes no text',
                code="invalid_value",
                param=f"{where}.output_modalities",
            )
        return list(wanted)

    def _rates(self) -> tuple[int, int]:
        return self.input_format.rate, self.output_format.rate

    def _audio(self, choices: Audio) -> JSON:
        audio: JSON = {side: dict(self.shown["audio"][side]) for side in ("input", "output")}
        hears, says = choices.input, choices.output
        if hears is not None:
            given = hears.model_fields_set
            if hears.format is not None:
                audio["input"]["format"] = _format(hears.format, "input")
            if "transcription" in given:
                wanted = hears.transcription
                # Three keys and no more: pipecat's reader takes nothing else.
                audio["input"]["transcription"] = wanted and {
                    "model": wanted.model or self.server.model,
                    "language": wanted.language,
                    "prompt": wanted.prompt,
                }
            if "turn_detection" in given and self.info.kind == "turns":
                audio["input"]["turn_detection"] = self._detection(hears.turn_detection)
        if says is not None:
            if says.format is not None:
                audio["output"]["format"] = _format(says.format, "output")
            if says.voice is not None:
                voice = says.voice.id if isinstance(says.voice, VoiceId) else says.voice
                voices = self.info.voices
                if voice not in (OWN_VOICE, *OPENAI_VOICES, *voices):
                    raise ProtocolError(
                        f"expected a voice of {self.info.name}: "
                        f"{', '.join((OWN_VOICE, *voices))}, got {voice!r}",
                        code="invalid_value",
                        param="session.audio.output.voice",
                    )
                audio["output"]["voice"] = voice
        return audio

    def _detection(self, wanted: TurnDetection | None) -> JSON | None:
        if wanted is None:
            return None
        shown = _shown_turns(self._preset(wanted.type))
        for key, value in wanted.given().items():
            if key in shown and key != "idle_timeout_ms" and value is not None:
                shown[key] = value
        return shown

    def _preset(self, kind: str) -> TurnSettings:
        """The server's own where it is of that kind."""
        own = turn_preset(self.server.turns)
        if (own.policy == "vad") == (kind == "server_vad"):
            return own
        return turn_preset("openai" if kind == "server_vad" else "semantic")

    def _turns(self) -> TurnSettings | None:
        shown = self.shown["audio"]["input"]["turn_detection"]
        if shown is None:
            return None
        preset = self._preset(shown["type"])
        common: dict[str, Any] = {
            "respond": shown["create_response"],
            "interrupt": shown["interrupt_response"],
        }
        if shown["type"] == "semantic_vad":
            return replace(preset, patience_s=PATIENCE_S[shown["eagerness"]], **common)
        return replace(
            preset,
            # OpenAI's takes 0 and 1, which no probability is below or above.
            threshold=min(0.99, max(0.01, shown["threshold"])),
            prefix_s=shown["prefix_padding_ms"] / 1000,
            silence_s=shown["silence_duration_ms"] / 1000,
            **common,
        )


def _shown_turns(turns: TurnSettings) -> JSON:
    common = {"create_response": turns.respond, "interrupt_response": turns.interrupt}
    if turns.policy != "vad":
        return {"type": "semantic_vad", "eagerness": "auto", **common}
    return {
        "type": "server_vad",
        "threshold": turns.threshold,
        "prefix_padding_ms": round(turns.prefix_s * 1000),
        "silence_duration_ms": round(turns.silence_s * 1000),
        "idle_timeout_ms": None,
        **common,
    }


def _format(wanted: Format, side: str) -> JSON:
    try:
        return format_from(wanted.given()).shown()
    except InputError as error:
        raise ProtocolError(
            str(error), code="invalid_value", param=f"session.audio.{side}.format.rate"
        ) from error
