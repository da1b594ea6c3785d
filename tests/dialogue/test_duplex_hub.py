from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from small_duplex import converse, heard, noise, small_duplex

from speechlm import SpeechLM
from speechlm.dialogue.hub import Hub
from speechlm.dialogue.messages import Event, Failed, Hear, ResponseEnded
from speechlm.dialogue.settings import SessionSettings

SETTINGS = SessionSettings(input_rate=16_000, output_rate=16_000, continuous=True)


@pytest.fixture(scope="module")
def bundle() -> SpeechLM:
    return small_duplex()


def test_a_hub_runs_duplex_sessions_that_do_not_know_of_each_other(bundle: SpeechLM) -> None:
    said: defaultdict[str, list[Event]] = defaultdict(list)
    hub = Hub(bundle, lambda name, event: said[name].append(event), max_sessions=3)
    waves = {name: noise(0.6, seed=seed) for seed, name in enumerate("abc")}
    for name in "abc":
        hub.open(name, replace(SETTINGS, seed=ord(name)))
    for start in range(0, len(waves["a"]), 1000):
        for name, wave in waves.items():
            if name == "c" and start >= 3000:
                hub.close("c")  # one hangs up
            hub.handle(name, Hear(samples=wave[start : start + 1000]))
        while hub.step():
            pass
    for name in "ab":
        alone = converse(bundle, waves[name], [], replace(SETTINGS, seed=ord(name)))
        assert len(heard(alone)) > 0
        assert np.array_equal(heard(said[name]), heard(alone))
    assert len(heard(said["c"])) <= 3000
    hub.open("d", SETTINGS)  # the place is free again
    hub.handle("d", Hear(samples=noise(0.3)))
    while hub.step():
        pass
    assert len(heard(said["d"])) > 0
    assert hub.wait_s is None


def test_another_rate_is_the_same_dialogue(bundle: SpeechLM) -> None:
    """Sound at 24 kHz is resampled by a stream, whose cuts change nothing either."""
    settings = replace(SETTINGS, input_rate=24_000, output_rate=48_000)
    wave = noise(0.5, 24_000)
    whole = heard(converse(bundle, wave, [], settings))
    pieces = heard(converse(bundle, wave, [1, 4000, 0, 333], settings))
    assert np.array_equal(whole, pieces)
    assert len(whole) > 0.25 * 48_000


def test_an_lm_whose_positions_cannot_move_fails_in_words_once_they_are_used_up() -> None:
    bundle = small_duplex(max_positions=24, position="learned")
    events: list[Event] = []
    hub = Hub(bundle, lambda _, event: events.append(event), max_sessions=1)
    hub.open("a", replace(SETTINGS, continuous=False))
    hub.handle("a", Hear(samples=noise(1.0)))
    while hub.step():
        pass
    *_, ended, _, failed = events
    assert isinstance(ended, ResponseEnded)
    assert ended.status == "failed"
    assert isinstance(failed, Failed)
    assert "context is full" in failed.message
    assert not hub.sessions
