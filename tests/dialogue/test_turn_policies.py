"""When it is the model's turn: silence, the LM's own opinion, smart-turn, a plug-in."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import numpy as np
import pytest
import torch
from small_talk import RATE, Talk, settings, silence, speech, talker, wave

pytest.importorskip("onnxruntime")

from speechlm import plugins
from speechlm.dialogue.messages import Committed, ResponseStarted, SpeechStopped
from speechlm.dialogue.settings import TurnSettings
from speechlm.dialogue.turn_policies import (
    Pause,
    SmartTurn,
    UnitLMEnd,
    turn_policy,
)
from speechlm.errors import PluginError
from speechlm.layouts.grid import LMSequence
from speechlm.model.likelihood import score


def pause(seconds: float, samples: np.ndarray) -> Pause:  # type: ignore[type-arg]
    units = talker().encode(wave(samples), RATE).codes
    return Pause(silence_s=seconds, units=lambda: units, wave=lambda: wave(samples))


def test_the_lm_finds_the_end_as_probable_as_its_likelihood() -> None:
    model = talker()
    policy = UnitLMEnd(model, TurnSettings(policy="unit-lm"))
    asked = pause(0.5, speech("four"))
    prompt = model.lm.layout.prompt(model.lm.vocabulary, {"question": asked.units()})
    weights = torch.zeros(prompt.ids.shape)
    weights[0, -1] = 1.0
    sequence = LMSequence(ids=prompt.ids, loss_weights=weights)
    (found,) = score(model.lm, [sequence], weighted=True)
    assert policy.probability(asked) == pytest.approx(math.exp(found.total), rel=1e-4)


@pytest.mark.parametrize("words", [("four",), ("eleven", "nine", "twelve"), ("one",) * 16])
def test_smart_turn_hears_what_pipecat_hears(words: tuple[str, ...]) -> None:
    """Its network has weights of 8 bits: noise of 1e-5 moves what it says by tenths. So what it
    is given is compared closely, and what it says where it is sure."""
    theirs = pytest.importorskip("pipecat.audio.turn.smart_turn.local_smart_turn_v3")
    samples = speech(*words)
    policy = SmartTurn(talker(), TurnSettings(policy="smart-turn"))
    network, given = policy._network, []

    class Recorder:
        def run(self, names: None, inputs: dict[str, Any]) -> Any:
            given.append(inputs["input_features"])
            return network.run(names, inputs)

    policy._network = Recorder()
    found = policy.probability(pause(0.3, samples))
    analyzer = theirs.LocalSmartTurnAnalyzerV3(sample_rate=RATE)
    length = 8 * RATE
    padded = np.pad(samples, (max(0, length - len(samples)), 0))[-length:]
    wanted = theirs.compute_whisper_log_mel_features(padded, do_normalize=True)
    np.testing.assert_allclose(given[0][0], wanted, atol=1e-3)
    said = analyzer._predict_endpoint(samples)["probability"]
    assert found == pytest.approx(said, abs=0.3)
    assert (found > 0.5) == (said > 0.5)


@pytest.mark.parametrize("end_probability", [0.0, 1.0])
def test_a_model_is_asked_after_silence_and_overruled_by_patience(end_probability: float) -> None:
    turns = TurnSettings(
        policy="unit-lm", silence_s=0.2, patience_s=1.0, end_probability=end_probability
    )
    talk = Talk(first=settings(turns=turns))
    talk.hear(speech("four"))
    spoken = talk.now
    talk.until(lambda: bool(talk.all(SpeechStopped)))
    waited = talk.now - spoken
    assert (0.15 < waited < 0.4) if end_probability == 0 else (0.9 < waited < 1.2)


class Never:
    """A policy that lets nobody finish."""

    def __init__(self, model: object, settings: TurnSettings) -> None:
        self.silence_s = settings.silence_s

    def ended(self, pause: Pause) -> bool:
        return False


def test_a_package_brings_a_policy_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    group = "speechlm.turn_policies"
    mine = EntryPoint(name="never", value=f"{__name__}:Never", group=group)
    known = plugins.entry_points(group=group)
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints([*known, mine]))
    talk = Talk(first=settings(turns=TurnSettings(policy="never")))
    talk.ask()
    talk.hear(silence(1.0))
    assert talk.kinds() == ["SpeechStarted"]


def test_an_unknown_policy_is_named_with_those_there_are() -> None:
    with pytest.raises(PluginError, match=r"unknown turn policy 'vat'.*did you mean 'vad'"):
        turn_policy(talker(), TurnSettings(policy="vat"))


def test_short_silence_ends_no_turn_and_long_silence_does() -> None:
    talk = Talk(first=settings(turns=TurnSettings(silence_s=0.4)))
    talk.hear(np.concatenate([speech("four"), silence(0.25), speech("nine")]))
    assert talk.kinds() == ["SpeechStarted"]
    talk.hear(silence(0.5))
    assert talk.last(Committed).duration_s > 1.5
    assert talk.all(ResponseStarted)
