from __future__ import annotations

import gc
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundle import small_bundle
from small_duplex import converse, heard, noise, run_engine, small_duplex

from speechlm import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.dialogue.duplex import DUPLEX_SAMPLING, DuplexSession, duplex_request
from speechlm.dialogue.messages import (
    AddItem,
    Cancel,
    ClearInput,
    Commit,
    Configure,
    DeleteItem,
    Event,
    Hear,
    InputCleared,
    Refused,
    Respond,
    ResponseEnded,
    ResponseStarted,
    Sound,
    Truncate,
    Truncated,
    TurnMeasured,
)
from speechlm.dialogue.settings import SessionSettings
from speechlm.errors import InputError
from speechlm.generation.engine import Engine

ENDLESS = SessionSettings(input_rate=16_000, output_rate=16_000, continuous=True, seed=3)
ANSWERS = replace(ENDLESS, continuous=False)


@pytest.fixture(scope="module")
def bundle() -> SpeechLM:
    return small_duplex()


def test_each_frame_heard_is_a_frame_said(bundle: SpeechLM) -> None:
    wave = noise(0.9)
    events = converse(bundle, wave, [], ENDLESS)
    assert {type(event) for event in events} == {Sound}
    said = heard(events)
    late = bundle.tokenizer.lookahead + (1 + bundle.vocoder.lookahead) * bundle.vocoder.hop_length
    assert len(wave) - late <= len(said) <= len(wave)
    assert np.abs(said).max() > 0.01


def test_what_is_said_depends_on_what_is_heard_and_the_seed(bundle: SpeechLM) -> None:
    first = heard(converse(bundle, noise(1.0), [], ENDLESS))
    assert not np.array_equal(first, heard(converse(bundle, noise(1.0, seed=1), [], ENDLESS)))
    again = replace(ENDLESS, seed=4)
    assert not np.array_equal(first, heard(converse(bundle, noise(1.0), [], again)))


@cache
def said_to_it_whole(continuous: bool) -> tuple[SpeechLM, list[Event]]:
    bundle = small_duplex()
    return bundle, converse(bundle, noise(0.5), [], replace(ENDLESS, continuous=continuous))


@settings(deadline=None, max_examples=5)
@given(cuts=st.lists(st.integers(0, 3000), max_size=8), continuous=st.booleans())
def test_chunks_of_the_network_change_nothing(cuts: list[int], continuous: bool) -> None:
    bundle, whole = said_to_it_whole(continuous)
    pieces = converse(bundle, noise(0.5), cuts, replace(ENDLESS, continuous=continuous))
    assert [type(event) for event in pieces] == [type(event) for event in whole]
    assert np.array_equal(heard(pieces), heard(whole))


def test_sessions_at_once_say_what_each_says_alone(bundle: SpeechLM) -> None:
    engine = Engine(bundle.lm, num_positions=512)
    waves = [noise(0.7, seed=seed) for seed in range(3)]
    events: list[list[Event]] = [[] for _ in waves]
    chosen = [replace(ENDLESS, seed=seed) for seed in range(3)]
    sessions = [
        DuplexSession(bundle, engine, one, said.append)
        for one, said in zip(chosen, events, strict=True)
    ]
    for start in range(0, len(waves[0]), 700):
        for number, (session, wave) in enumerate(zip(sessions, waves, strict=True)):
            if start % (number + 1) == 0:  # some hear in larger pieces, others wait meanwhile
                session.handle(Hear(samples=wave[start : start + 700 * (number + 1)]))
        run_engine(engine, sessions)
    for number, (said, one) in enumerate(zip(events, chosen, strict=True)):
        taken = [
            waves[number][start : start + 700 * (number + 1)]
            for start in range(0, len(waves[0]), 700)
            if start % (number + 1) == 0
        ]
        alone = converse(bundle, np.concatenate(taken), [], one)
        assert np.array_equal(heard(said), heard(alone))


def test_answers_open_where_sound_begins_and_measure_themselves(bundle: SpeechLM) -> None:
    events = converse(bundle, noise(2.5), [], replace(ANSWERS, max_answer_s=1.0))
    kinds = [type(event) for event in events]
    first = kinds.index(ResponseEnded)
    assert kinds[:first] == [ResponseStarted, *[Sound] * (first - 1)]
    assert kinds[first + 1] is TurnMeasured
    ended = events[first]
    assert isinstance(ended, ResponseEnded)
    assert (ended.status, ended.reason) == ("incomplete", "max_output_tokens")
    assert ended.said_s == pytest.approx(1.0, abs=0.04)
    assert ended.said_s == pytest.approx(len(heard(events[:first])) / 16_000)
    started = [event for event in events if isinstance(event, ResponseStarted)]
    assert started[0].previous_item_id is None
    for before, after in pairwise(started):
        assert after.previous_item_id == before.item_id
    measured = events[first + 1]
    assert isinstance(measured, TurnMeasured)
    assert 0 < measured.figures["frame_p50"] <= measured.figures["frame_p99"]
    assert measured.figures["response_id"] == ended.response_id


def test_a_client_cancels_and_truncates_what_is_said(bundle: SpeechLM) -> None:
    events: list[Event] = []
    engine = Engine(bundle.lm, num_positions=256)
    session = DuplexSession(bundle, engine, ANSWERS, events.append)
    session.handle(Hear(samples=noise(0.5)))
    run_engine(engine, [session])
    started = events[0]
    assert isinstance(started, ResponseStarted)
    session.handle(Cancel(response_id="another"))
    session.handle(Cancel())
    session.handle(Cancel())
    session.handle(Truncate(item_id=started.item_id, heard_s=0.2))
    session.handle(Truncate(item_id=started.item_id, heard_s=9.0))
    session.handle(Truncate(item_id="none", heard_s=1.0))
    session.handle(Hear(samples=noise(0.3)))
    run_engine(engine, [session])
    told = [event for event in events if not isinstance(event, ResponseStarted | Sound)]
    wrong, ended, measured, not_active, cut, not_longer, unknown = told
    assert isinstance(wrong, Refused)
    assert isinstance(ended, ResponseEnded)
    assert (ended.status, ended.reason) == ("cancelled", "client_cancelled")
    assert isinstance(measured, TurnMeasured)
    assert isinstance(not_active, Refused)
    assert not_active.code == "response_cancel_not_active"
    assert cut == not_longer == Truncated(item_id=started.item_id, heard_s=0.2)
    assert isinstance(unknown, Refused)
    assert unknown.code == "item_truncate_invalid_item_id"
    assert not any(isinstance(one, Sound) for one in events[events.index(ended) :])  # it is hushed


def test_what_a_duplex_model_cannot_do_is_refused(bundle: SpeechLM) -> None:
    events: list[Event] = []
    session = DuplexSession(bundle, Engine(bundle.lm, num_positions=64), ENDLESS, events.append)
    for command in (
        Commit(),
        Respond(response_id="r"),
        AddItem(item_id="i", role="user"),
        DeleteItem(item_id="i"),
        ClearInput(),
    ):
        session.handle(command)
    assert [event.code for event in events if isinstance(event, Refused)] == [
        "input_audio_buffer_commit_empty",
        "nothing_to_answer",
        "item_create_not_supported",
        "item_delete_invalid_item_id",
    ]
    assert isinstance(events[-1], InputCleared)
    with pytest.raises(InputError, match="layout of two speakers"):
        duplex_request(small_bundle().lm, ENDLESS)


def test_settings_change_until_something_was_heard(bundle: SpeechLM) -> None:
    events: list[Event] = []
    engine = Engine(bundle.lm, num_positions=256)
    session = DuplexSession(bundle, engine, replace(ENDLESS, seed=9), events.append)
    session.handle(Configure(settings=ENDLESS))
    session.handle(Hear(samples=noise(0.7)))
    run_engine(engine, [session])
    assert np.array_equal(heard(events), heard(converse(bundle, noise(0.7), [], ENDLESS)))
    session.handle(Configure(settings=replace(ENDLESS, sampling=SamplingConfig(temperature=0.5))))
    refused = events[-1]
    assert isinstance(refused, Refused)
    assert refused.code == "session_already_started"
    session.handle(Configure(settings=ANSWERS))  # what is let out may change at any time
    assert events[-1] is refused
    session.close()
    session.handle(Hear(samples=noise(0.5)))
    assert not engine.busy


def test_who_is_behind_drops_silence_and_only_silence(bundle: SpeechLM) -> None:
    def run(wave: np.ndarray[Any, Any]) -> DuplexSession:
        engine = Engine(bundle.lm, num_positions=256)
        session = DuplexSession(bundle, engine, ENDLESS, lambda event: None)
        session.handle(Hear(samples=wave))
        run_engine(engine, [session])
        return session

    quiet = run(np.concatenate([np.zeros(32_000, np.float32), noise(0.5)]))
    frames = 1.5 / quiet.frame_s  # behind by 2.5 s, until 1 s is left
    assert frames - 3 <= quiet.num_dropped <= frames
    assert run(noise(2.5)).num_dropped == 0


def test_input_beyond_all_measure_is_lost(bundle: SpeechLM) -> None:
    engine = Engine(bundle.lm, num_positions=256)
    session = DuplexSession(bundle, engine, ENDLESS, lambda event: None)
    for _ in range(40):
        session.handle(Hear(samples=np.zeros(16_000, np.float32)))
    assert session.backlog_s <= 30
    assert session.num_lost == pytest.approx(10 / session.frame_s, abs=3)
    session.close()


def test_an_endless_session_holds_no_more_as_time_goes_on(bundle: SpeechLM) -> None:
    engine = Engine(bundle.lm, num_positions=256)
    chosen = replace(ENDLESS, sampling=SamplingConfig(temperature=1.0, window=32))
    session = DuplexSession(bundle, engine, chosen, lambda event: None)
    silence = np.zeros(16_000, np.float32)
    sizes = []
    for second in range(7):
        session.handle(Hear(samples=silence))
        run_engine(engine, [session])
        if second >= 2:  # its window of 32 frames is full
            sizes.append(held(session, bundle))
    assert min(sizes) > 1000
    assert max(sizes[-2:]) <= max(sizes[:2]) + 50 * 5  # figures of frames, the last 1024 of them


def held(session: DuplexSession, bundle: SpeechLM) -> int:
    """Numbers that a session keeps: in lists, deques, dicts and tensors."""
    seen = {id(bundle)} | {id(part) for part in (bundle.lm, bundle.tokenizer, bundle.vocoder)}
    total, todo = 0, [session]
    while todo:
        one: Any = todo.pop()
        if (
            id(one) in seen
            or isinstance(one, type)
            or callable(one)
            or type(one).__name__ == "module"
        ):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            total += one.untyped_storage().nbytes() // 4
            continue
        if isinstance(one, list | tuple | set | dict) or hasattr(one, "__len__"):
            total += len(one) if hasattr(one, "__len__") else 0
        todo.extend(gc.get_referents(one))
    return total


def test_the_most_probable_unit_can_be_asked_for() -> None:
    lm = small_duplex().lm
    greedy = SamplingConfig(temperature=0.0)
    asked = duplex_request(lm, replace(ENDLESS, sampling=greedy)).sampling
    assert asked.temperature == 0.0
    assert duplex_request(lm, ENDLESS).sampling.temperature == DUPLEX_SAMPLING.temperature
