"""When is it the model's turn? Policies that are asked at a pause; plug-ins by name.

A package offers its own by an entry point in the group ``speechlm.turn_policies``: a class that
is made with the bundle and the settings, once a session.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from speechlm.bundle import SpeechLM
from speechlm.dialogue.settings import TurnSettings
from speechlm.dialogue.voice_activity import SAMPLE_RATE
from speechlm.errors import PluginError
from speechlm.model.scoring import log_probs
from speechlm.plugins import plugin

GROUP = "speechlm.turn_policies"
ASK_AGAIN_S = 0.1
"""A policy that asks a model does so again after so much more silence."""
SMART_TURN_S = 8.0
"""What smart-turn hears of a turn: its last seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """Silence after speech within a turn; asked about at every window of it."""

    silence_s: float
    units: Callable[[], Tensor]
    """Of the turn up to here, int64 [K, F]."""
    wave: Callable[[], Tensor]
    """Of the turn up to here, float32 [T] at 16 kHz."""


class TurnPolicy(Protocol):
    """Decides at pauses; one object a session."""

    def ended(self, pause: Pause) -> bool:
        """Whether the user's turn is over."""
        ...


def turn_policy(model: SpeechLM, settings: TurnSettings) -> TurnPolicy:
    """The policy that settings name.

    Raises:
        PluginError: It is not known, or needs a package that is not installed.
        InputError: The bundle cannot do what it needs.
    """
    return cast(TurnPolicy, plugin(GROUP, settings.policy)(model, settings))


class Silence:
    """``vad``: the turn ends after ``silence_s``."""

    def __init__(self, model: SpeechLM, settings: TurnSettings) -> None:
        self._settings = settings

    def ended(self, pause: Pause) -> bool:
        return pause.silence_s >= self._settings.silence_s


class _AsksAModel(ABC):
    """Asks from ``silence_s`` on, now and then; at ``patience_s`` the turn ends in any case."""

    def __init__(self, model: SpeechLM, settings: TurnSettings) -> None:
        self._settings = settings
        self._next_s = 0.0

    def ended(self, pause: Pause) -> bool:
        if pause.silence_s < self._settings.silence_s:
            self._next_s = 0.0  # a new pause
            return False
        if pause.silence_s >= self._settings.patience_s:
            return True
        if pause.silence_s < self._next_s:
            return False
        self._next_s = pause.silence_s + ASK_AGAIN_S
        return self.probability(pause) >= self._settings.end_probability

    @abstractmethod
    def probability(self, pause: Pause) -> float:
        """That the turn is over."""


class UnitLMEnd(_AsksAModel):
    """``unit-lm``: how probable the LM itself finds that the answer begins here.

    It knows where questions end if its loss counted them (``layout.options.question_weight``).
    """

    def __init__(self, model: SpeechLM, settings: TurnSettings) -> None:
        super().__init__(model, settings)
        self._lm = model.lm
        self._row_ids = model.lm.layout.row_ids(model.lm.vocabulary)

    def probability(self, pause: Pause) -> float:
        """Of the mark that opens an answer, among all that may come."""
        ids = self._lm.layout.prompt(self._lm.vocabulary, {"question": pause.units()}).ids
        ids = ids[:, -self._lm.decoder.config.max_positions :]
        wanted = torch.zeros(ids.shape, dtype=torch.bool)
        wanted[0, -1] = True
        (found,) = log_probs(self._lm.decoder, self._row_ids, [ids], [wanted])
        return float(found[0, -1].exp())


class SmartTurn(_AsksAModel):
    """``smart-turn``: a network that hears from how it was said whether it was the end.

    Source:
        Daily 2025, "Smart Turn v3", github.com/pipecat-ai/smart-turn. The wheel of pipecat-ai
        carries its network; ``SPEECHLM_SMART_TURN`` names another file.
    """

    def __init__(self, model: SpeechLM, settings: TurnSettings) -> None:
        super().__init__(model, settings)
        self._network, self._features = _smart_turn()

    def probability(self, pause: Pause) -> float:
        length = round(SMART_TURN_S * SAMPLE_RATE)
        wave = pause.wave()[-length:]
        wave = torch.nn.functional.pad(wave, (length - len(wave), 0))
        features = self._features(
            wave.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="np", do_normalize=True
        )
        found = self._network.run(None, {"input_features": features["input_features"]})
        return float(found[0].reshape(-1)[0])


@cache
def _smart_turn() -> tuple[Any, Any]:
    """The network, and what makes its features of a wave."""
    import os

    try:
        import onnxruntime  # type: ignore[import-untyped]
        from transformers import WhisperFeatureExtractor
    except ImportError as error:
        raise PluginError(
            "smart-turn needs the package onnxruntime; run pip install 'speechlm[serve]'"
        ) from error
    named = os.environ.get("SPEECHLM_SMART_TURN")
    path = Path(named) if named else _carried_network()
    if path is None or not path.is_file():
        raise PluginError(
            f"expected smart-turn's network, an ONNX file, got {path or 'none'}: run pip install "
            "pipecat-ai, whose wheel carries it, or name a file by SPEECHLM_SMART_TURN"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    network = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    features: Any = WhisperFeatureExtractor
    return network, features(chunk_length=int(SMART_TURN_S))


def _carried_network() -> Path | None:
    package = find_spec("pipecat")
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "audio" / "turn" / "smart_turn" / "data"
    return next(iter(sorted(folder.glob("smart-turn-v3*.onnx"), reverse=True)), None)
