"""A conversation in turns: the order of what it says, commands, history, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_talk import (
    BRIEF_S,
    QUESTION,
    RATE,
    Talk,
    settings,
    silence,
    speech,
    talker,
    wave,
)

pytest.importorskip("onnxruntime")

from speechlm.config import SamplingConfig
from speechlm.dialogue.messages import (
    AddItem,
    Cancel,
    ClearInput,
    Commit,
    Committed,
    Configure,
    DeleteItem,
    Event,
    Hear,
    InputCleared,
    ItemAdded,
    ItemDeleted,
    Refused,
    Respond,
    ResponseEnded,
    ResponseStarted,
    Sound,
    SpeechStarted,
    SpeechStopped,
    Truncate,
    Truncated,
    TurnMeasured,
)
from speechlm.dialogue.settings import TurnSettings
from speechlm.errors import ConfigError, PluginError
from speechlm.generation.rendering import Rendering

ASKED = speech(*QUESTION)


def pushed(**changes: object) -> Talk:
    """Push to talk; answers come as soon as they are there."""
    return Talk(first=settings(**{"turns": None, "lead_s": 0, **changes}))


def ask(talk: Talk, response_id: str = "r") -> None:
    talk.do(Hear(samples=ASKED), Commit(), Respond(response_id=response_id))
    talk.work()


def code(said: list[Event]) -> str:
    """Of the one thing that was said, a refusal."""
    (event,) = said
    assert isinstance(event, Refused)
    return event.code


def test_an_answered_turn_says_all_in_order() -> None:
    talk = Talk()
    talk.ask()
    talk.until(lambda: bool(talk.all(TurnMeasured)))
    assert talk.kinds() == [
        "SpeechStarted",
        "SpeechStopped",
        "Committed",
        "ResponseStarted",
        "Sound",
        "ResponseEnded",
        "TurnMeasured",
    ]
    started, stopped = talk.last(SpeechStarted), talk.last(SpeechStopped)
    item = talk.last(Committed)
    answer, ended = talk.last(ResponseStarted), talk.last(ResponseEnded)
    assert started.item_id == stopped.item_id == item.item_id
    assert item.previous_item_id is None
    assert answer.previous_item_id == item.item_id
    assert started.at == 0
    assert abs(stopped.at - len(ASKED)) < 0.15 * RATE
    assert (ended.status, ended.reason) == ("incomplete", "max_output_tokens")
    assert ended.said_s == pytest.approx(len(talk.sound()) / RATE) == pytest.approx(BRIEF_S)
    assert ended.output_units == BRIEF_S * 50
    assert ended.input_units > 50
    figures = talk.last(TurnMeasured).figures
    assert figures["policy_wait"] == pytest.approx(512)
    assert figures["answer_s"] > 1


def test_push_to_talk_answers_when_it_is_told() -> None:
    talk = pushed()
    talk.do(Hear(samples=ASKED), Hear(samples=silence(2.0)))
    talk.work()
    assert talk.kinds() == []
    (item,) = talk.do(Commit())
    assert isinstance(item, Committed)
    assert item.duration_s == pytest.approx(len(ASKED) / RATE + 2.0)
    talk.work()
    assert talk.kinds() == ["Committed"]
    talk.do(Respond(response_id="mine"))
    talk.work()
    assert {sound.response_id for sound in talk.all(Sound)} == {"mine"}


def test_two_commits_share_no_sound() -> None:
    talk = pushed()
    for count in (4000, 1600, 2345):
        talk.do(Hear(samples=ASKED[:count]))
        (item,) = talk.do(Commit())
        assert isinstance(item, Committed)
        assert item.duration_s == pytest.approx(count / RATE)


def test_the_answer_sounds_as_the_bundles_own() -> None:
    """Of the same units: they are found by the same tokenizer and drawn from the same seed."""
    talk = pushed()
    ask(talk)
    model, sampling = talker(), SamplingConfig(temperature=0.5)
    codes = talk.session.history.items[0].codes
    prompt = model.lm.layout.prompt(model.lm.vocabulary, {"question": codes})
    rendering = Rendering(model.lm, model.vocoder, prompt, model.reply_voice)
    from speechlm.generation.generate import generate_stream

    sounds = []
    for number, column in enumerate(generate_stream(model.lm, prompt, sampling, 0)):
        piece = rendering.push(column)
        if piece is not None:
            sounds.append(piece.sound)
        if number + 1 == BRIEF_S * 50:
            break
    sounds.append(rendering.finish().sound)
    assert torch.equal(wave(talk.sound()), torch.cat(sounds))


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_that_ends_by_itself_is_whole(seed: int) -> None:
    """Whatever number of units it has; some end on the border of a piece."""
    talk = pushed(seed=seed, sampling=SamplingConfig(temperature=1.0), max_answer_s=8.0)
    ask(talk)
    ended = talk.last(ResponseEnded)
    assert ended.status == "completed"
    assert len(talk.sound()) == ended.output_units * RATE // 50


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 48_000])
def test_a_tenth_of_a_second_is_enough_to_commit(rate: int) -> None:
    talk = pushed(input_rate=rate)
    for _ in range(3):
        talk.do(Hear(samples=silence(0.1, rate)))
        assert isinstance(talk.do(Commit())[0], Committed)


def test_nothing_said_is_nothing_to_commit_or_to_answer() -> None:
    talk = pushed()
    talk.do(Hear(samples=silence(0.09)))
    assert code(talk.do(Commit())) == "input_audio_buffer_commit_empty"
    assert code(talk.do(Respond(response_id="r"))) == "nothing_to_answer"
    assert code(talk.do(Cancel())) == "response_cancel_not_active"
    listening = Talk()
    listening.hear(silence(0.3))
    assert code(listening.do(Commit())) == "input_audio_buffer_commit_empty"


def test_one_answer_at_a_time() -> None:
    talk = pushed()
    talk.do(Hear(samples=ASKED), Commit(), Respond(response_id="first"))
    said = talk.do(Respond(response_id="second"))
    assert code(said) == "conversation_already_has_active_response"
    talk.work()
    assert {sound.response_id for sound in talk.all(Sound)} == {"first"}


def test_a_cancelled_answer_ends_at_once_and_draws_no_more() -> None:
    talk = pushed(lead_s=0.1)
    talk.do(Hear(samples=ASKED), Commit(), Respond(response_id="r"))
    talk.wait(0.4)
    assert code(talk.do(Cancel(response_id="another"))) == "response_cancel_not_active"
    talk.do(Cancel(response_id="r"))
    ended = talk.last(ResponseEnded)
    assert (ended.status, ended.reason) == ("cancelled", "client_cancelled")
    assert 0.3 < ended.said_s < 0.7
    assert not talk.session.tickets
    count = len(talk.events)
    talk.wait(0.4)
    assert len(talk.events) == count
    heard = talk.session.history.items[-1].codes.shape[1] / 50
    assert abs(heard - 0.4) <= 0.05


def test_sound_is_let_out_as_it_is_needed() -> None:
    talk = pushed(lead_s=0.2)
    talk.do(Hear(samples=ASKED), Commit(), Respond(response_id="r"))
    begun = talk.now
    talk.wait(2.0)
    out = 0.0
    for sound in talk.all(Sound):
        ahead = begun + out - talk.at[id(sound)]
        assert ahead <= 0.2 + 1e-6
        out += len(sound.samples) / RATE
        assert len(sound.samples) <= 0.08 * RATE
    assert out == pytest.approx(BRIEF_S)
    assert talk.at[id(talk.last(ResponseEnded))] - begun > BRIEF_S - 0.4


def test_the_sound_does_not_depend_on_its_pace() -> None:
    slow = pushed(lead_s=0.2, output_rate=24_000)
    slow.do(Hear(samples=ASKED), Commit(), Respond(response_id="r"))
    slow.wait(2.0)
    fast = pushed(output_rate=24_000)
    ask(fast)
    assert np.array_equal(slow.sound(), fast.sound())


def test_an_answer_outlasts_the_context_until_its_limit() -> None:
    limit = talker().lm.decoder.config.max_positions
    talk = pushed(sampling=SamplingConfig(temperature=0.5, window=64), max_answer_s=3.0)
    ask(talk)
    ended = talk.last(ResponseEnded)
    assert 64 < 150 <= ended.output_units <= 153
    assert limit > 64
    assert ended.said_s == pytest.approx(ended.output_units / 50)


def test_an_answer_has_a_limit_of_its_own() -> None:
    talk = pushed()
    talk.do(Hear(samples=ASKED), Commit(), Respond(response_id="r", max_answer_s=0.4))
    talk.work()
    assert talk.last(ResponseEnded).said_s == pytest.approx(0.4)


def test_seeds_go_on_from_answer_to_answer() -> None:
    talk = pushed(seed=3)
    ask(talk, "first")
    ask(talk, "second")
    again = pushed(seed=4)
    again.do(Hear(samples=ASKED), Commit(), Respond(response_id="r"))
    again.work()
    assert np.array_equal(talk.sound("second"), again.sound())
    assert not np.array_equal(talk.sound("first"), talk.sound("second"))


def test_truncating_is_clamped_and_never_lengthens() -> None:
    talk = pushed()
    ask(talk)
    item = talk.last(ResponseStarted).item_id
    for asked, left in ((50.0, BRIEF_S), (0.5, 0.5), (0.9, 0.5), (-3.0, 0.0)):
        (said,) = talk.do(Truncate(item_id=item, heard_s=asked))
        assert isinstance(said, Truncated)
        assert said.heard_s == pytest.approx(left)
        assert talk.session.history.items[-1].codes.shape[1] == round(left * 50)
    assert code(talk.do(Truncate(item_id="no", heard_s=1))) == "item_truncate_invalid_item_id"
    question = talk.session.history.items[0].id
    said = talk.do(Truncate(item_id=question, heard_s=1))
    assert code(said) == "item_truncate_invalid_item_id"


def test_truncating_an_older_answer_tells_what_is_left() -> None:
    talk = pushed()
    ask(talk, "first")
    item = talk.last(ResponseStarted).item_id
    ask(talk, "second")
    (said,) = talk.do(Truncate(item_id=item, heard_s=1e6))
    assert isinstance(said, Truncated)
    assert said.heard_s == pytest.approx(BRIEF_S)


def test_items_come_and_go() -> None:
    talk = pushed()
    ids = ["a", "c", "b", "first"]
    for item, after in zip(ids, (None, None, "a", "root"), strict=True):
        (said,) = talk.do(AddItem(item_id=item, role="user", samples=ASKED, after=after))
        assert isinstance(said, ItemAdded)
    assert [item.id for item in talk.session.history.items] == ["first", "a", "b", "c"]
    assert said.previous_item_id is None
    (said,) = talk.do(DeleteItem(item_id="b"))
    assert isinstance(said, ItemDeleted)
    refused = [
        talk.do(AddItem(item_id="a", role="user", samples=ASKED)),
        talk.do(AddItem(item_id="x", role="user", samples=ASKED, after="b")),
        talk.do(AddItem(item_id="x", role="user", text="hello")),
        talk.do(AddItem(item_id="x", role="user", samples=silence(0))),
        talk.do(DeleteItem(item_id="b")),
    ]
    assert [code(said) for said in refused] == [
        "item_id_taken",
        "previous_item_id_invalid",
        "unsupported_content",
        "invalid_audio",
        "item_delete_invalid_item_id",
    ]
    assert [item.id for item in talk.session.history.items] == ["first", "a", "c"]


def test_ids_of_clients_are_not_given_again() -> None:
    talk = pushed()
    talk.do(AddItem(item_id="item_1", role="user", samples=ASKED))
    ask(talk)
    ids = [item.id for item in talk.session.history.items]
    assert len(set(ids)) == len(ids) == 3


def test_deleting_the_present_answer_stops_it() -> None:
    talk = pushed(lead_s=0.1)
    talk.do(Hear(samples=ASKED), Commit(), Respond(response_id="r"))
    talk.wait(0.2)
    talk.do(DeleteItem(item_id=talk.last(ResponseStarted).item_id))
    assert talk.last(ResponseEnded).status == "cancelled"
    assert talk.all(ItemDeleted)
    assert len(talk.session.history.items) == 1
    assert not talk.session.tickets


def test_what_was_cleared_is_in_no_turn() -> None:
    talk = pushed()
    talk.do(Hear(samples=ASKED))
    assert isinstance(talk.do(ClearInput())[0], InputCleared)
    assert code(talk.do(Commit())) == "input_audio_buffer_commit_empty"
    listening = Talk()
    listening.hear(ASKED)
    listening.do(ClearInput())
    cleared_at = len(ASKED)
    listening.hear(np.concatenate([speech("four"), silence(0.7)]))
    started = listening.all(SpeechStarted)
    assert len(started) == 2
    assert started[1].at >= cleared_at - 600
    assert listening.last(Committed).duration_s < 1.4


def test_a_wish_that_the_bundle_cannot_fulfil_changes_nothing() -> None:
    talk = Talk()
    before = talk.session.settings
    wishes = [
        settings(turns=TurnSettings(policy="none-such")),
        settings(voice="none-such"),
        settings(modality="text"),
        settings(sampling=SamplingConfig(guidance=2.0)),
    ]
    for wish in wishes:
        assert code(talk.do(Configure(settings=wish))) == "invalid_value"
        assert talk.session.settings is before
    talk.ask()
    assert talk.all(Committed)
    assert "a" in talk.hub.sessions
    said = talk.do(Configure(settings=settings(input_rate=24_000)))
    assert code(said) == "input_format_fixed"
    with pytest.raises(PluginError):
        Talk(first=wishes[0])
    with pytest.raises(ConfigError, match="voice of this bundle"):
        Talk(first=wishes[1])


def test_rates_may_change_before_the_first_sound() -> None:
    talk = pushed()
    talk.do(Configure(settings=settings(turns=None, lead_s=0, input_rate=48_000)))
    talk.do(Hear(samples=silence(1.0, 48_000)))
    (item,) = talk.do(Commit())
    assert isinstance(item, Committed)
    assert item.duration_s == pytest.approx(1.0, abs=0.02)


def test_push_to_talk_may_begin_within_a_turn() -> None:
    """The open turn is committed by hand, and so are those that follow."""
    talk = Talk(first=settings(turns=TurnSettings(respond=False)))
    talk.hear(ASKED)
    talk.do(Configure(settings=settings(turns=None)))
    for _ in range(2):
        talk.hear(silence(0.4))
        talk.do(Commit())
    assert len(talk.all(Committed)) == 2
    assert not talk.all(Refused)


def test_without_respond_a_turn_waits_for_its_answer() -> None:
    talk = Talk(first=settings(turns=TurnSettings(respond=False)))
    talk.ask()
    talk.hear(silence(0.5))
    assert talk.kinds() == ["SpeechStarted", "SpeechStopped", "Committed"]
    talk.do(Respond(response_id="now"))
    talk.work()
    assert talk.last(ResponseStarted).previous_item_id == talk.last(Committed).item_id
