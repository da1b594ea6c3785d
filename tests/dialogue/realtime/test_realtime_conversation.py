"""Order, shapes and ids of events, fed with what a session says; judged by other projects."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import numpy as np
import pytest
from realtime_judges import judge, judge_all

from speechlm.dialogue import messages as m
from speechlm.dialogue.server.realtime.client_events import Dialect
from speechlm.dialogue.server.realtime.configuration import Configuration
from speechlm.dialogue.server.realtime.conversation import Conversation
from speechlm.dialogue.server.realtime.formats import AudioFormat
from speechlm.dialogue.server.realtime.inbox import Inbox
from speechlm.dialogue.server.settings import ServerSettings
from speechlm.dialogue.service import BundleInfo

JSON = dict[str, Any]
SOUND = np.linspace(-0.5, 0.5, 2400, dtype=np.float32)

EARS: JSON = {"audio": {"input": {"transcription": {"model": "x"}}}}


class Talk:
    """A conversation of which all that is sent is judged and kept."""

    def __init__(self, dialect: Dialect = "ga", **info: Any) -> None:
        facts = {"writes_text": True, "transcribes": True, "kind": "turns", **info}
        bundle = BundleInfo(
            name="demo",
            fingerprint="f",
            sample_rate=16_000,
            frame_s=0.04,
            speaks_text=False,
            **facts,
        )
        server = ServerSettings(model="demo")
        configuration = Configuration.first("sess_1", 2_000_000_000, server, bundle)
        self.dialect = dialect
        self.inbox = Inbox()
        self.conversation = Conversation(configuration, self.inbox, dialect)
        self.commands: list[m.Command] = []
        self.sent: list[JSON] = []
        self._keep(self.conversation.opened())

    def _keep(self, events: list[JSON]) -> list[JSON]:
        if self.dialect == "ga" and not self.conversation.configuration.wants_extensions:
            judge_all(events)
        self.sent += events
        return events

    def feed(self, kind: str, **fields: Any) -> list[JSON]:
        outcome = self.conversation.feed(json.dumps({"type": kind, **fields}))
        self.commands += outcome.commands
        return self._keep(outcome.events)

    def tell(self, *events: m.Event) -> list[JSON]:
        told = [one for event in events for one in self.conversation.tell(event)]
        return self._keep(told)

    def update(self, **session: Any) -> JSON:
        (event,) = self.feed("session.update", session=session)
        return event

    def ask(self, number: int = 1) -> list[JSON]:
        """A spoken question of 1 s."""
        item = f"q{number}"
        return self.tell(
            m.SpeechStarted(at=2400, item_id=item),
            m.SpeechStopped(at=26_400, item_id=item),
            m.Committed(item_id=item, previous_item_id=None, duration_s=1.0),
        )

    def answer(self, number: int = 1, **end: Any) -> list[JSON]:
        names = {"response_id": f"r{number}", "item_id": f"a{number}"}
        ended = {"status": "completed", "said_s": 0.1, "text": "two", "output_units": 3, **end}
        return self.tell(
            m.ResponseStarted(**names, previous_item_id=f"q{number}", modality="audio"),
            m.Text(**names, delta="two"),
            m.Sound(**names, samples=SOUND),
            m.ResponseEnded(**names, input_units=25, **ended),
        )


def kinds(events: list[JSON]) -> list[str]:
    return [event["type"] for event in events]


def error_of(events: list[JSON]) -> JSON:
    (event,) = events
    assert event["type"] == "error"
    error: JSON = event["error"]
    return error


# --- a turn -------------------------------------------------------------------------------------


def test_a_turn_has_its_events_in_the_protocols_order() -> None:
    talk = Talk()
    talk.update(**EARS)
    question = talk.ask()
    heard = talk.tell(m.Transcribed(item_id="q1", text="one and one"))
    answer = talk.answer()
    assert kinds(question + heard + answer) == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.completed",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio_transcript.delta",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    assert question[0]["audio_start_ms"] == 100
    assert question[1]["audio_end_ms"] == 1100
    assert heard[0]["usage"] == {"type": "duration", "seconds": 1.0}
    assert answer[2]["item"]["status"] == "in_progress"
    assert answer[2]["previous_item_id"] == "q1"
    pcm = np.frombuffer(base64.b64decode(answer[5]["delta"]), "<i2")
    np.testing.assert_array_equal(pcm, np.rint(SOUND * 32768))
    done = answer[-1]["response"]
    assert done["status"] == "completed"
    assert done["status_details"] is None
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "two"}]
    assert done["usage"]["total_tokens"] == 28
    assert done["usage"]["input_token_details"]["audio_tokens"] == 25
    assert done["usage"]["output_token_details"] == {"audio_tokens": 3, "text_tokens": 0}


def test_every_event_has_an_id_of_its_own() -> None:
    talk = Talk()
    talk.ask()
    talk.answer()
    ids = [event["event_id"] for event in talk.sent]
    assert len(set(ids)) == len(ids)


def test_items_name_the_one_before_them() -> None:
    talk = Talk()
    for number in (1, 2):
        talk.ask(number)
        talk.answer(number)
    added = [event for event in talk.sent if event["type"] == "conversation.item.added"]
    assert [(one["previous_item_id"], one["item"]["id"]) for one in added] == [
        (None, "q1"),
        ("q1", "a1"),
        ("a1", "q2"),
        ("q2", "a2"),
    ]


def test_an_answer_in_text_has_text_events() -> None:
    talk = Talk()
    shown = talk.update(output_modalities=["text"])["session"]
    assert shown["output_modalities"] == ["text"]
    assert talk.commands[-1].settings.modality == "text"
    names = {"response_id": "r1", "item_id": "a1"}
    events = talk.tell(
        m.ResponseStarted(**names, previous_item_id=None, modality="text"),
        m.Text(**names, delta="tw"),
        m.Text(**names, delta="o"),
        m.ResponseEnded(**names, status="completed", output_units=2),
    )
    assert kinds(events)[4:8] == [
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
    ]
    assert events[6]["text"] == "two"
    assert events[-1]["response"]["output"][0]["content"] == [
        {"type": "output_text", "text": "two"}
    ]
    assert events[-1]["response"]["usage"]["output_token_details"]["text_tokens"] == 2


@pytest.mark.parametrize(
    ("status", "reason", "details"),
    [
        ("cancelled", "turn_detected", {"type": "cancelled", "reason": "turn_detected"}),
        ("cancelled", "client_cancelled", {"type": "cancelled", "reason": "client_cancelled"}),
        ("incomplete", "max_output_tokens", {"type": "incomplete", "reason": "max_output_tokens"}),
        (
            "failed",
            "no sound",
            {
                "type": "failed",
                "error": {"type": "server_error", "code": "answer_failed", "message": "no sound"},
            },
        ),
    ],
)
def test_an_answer_that_ends_otherwise_says_why(status: str, reason: str, details: JSON) -> None:
    talk = Talk()
    talk.ask()
    response = talk.answer(status=status, reason=reason)[-1]["response"]
    assert response["status"] == status
    assert response["status_details"] == details
    assert response["output"][0]["status"] == "incomplete"


def test_an_answer_that_fails_before_it_begins_has_both_ends() -> None:
    talk = Talk()
    talk.feed("response.create", response={"metadata": {"client_event_id": "7"}})
    (respond,) = talk.commands
    ended = m.ResponseEnded(
        response_id=respond.response_id, item_id="a1", status="failed", reason="no"
    )
    events = talk.tell(ended)
    assert kinds(events)[0] == "response.created"
    assert kinds(events)[-1] == "response.done"
    assert events[-1]["response"]["metadata"] == {"client_event_id": "7"}


def test_transcripts_come_only_where_they_were_asked_for() -> None:
    talk = Talk()
    talk.ask()
    assert talk.tell(m.Transcribed(item_id="q1", text="one")) == []
    (event,) = talk.feed("conversation.item.retrieve", item_id="q1")
    assert event["item"]["content"] == [{"type": "input_audio", "transcript": "one"}]


def test_a_bundle_that_writes_nothing_down_says_so_once_a_question() -> None:
    talk = Talk(transcribes=False)
    assert "failed" not in " ".join(kinds(talk.ask(1)))
    talk.update(**EARS)
    event = talk.ask(2)[-1]
    assert event["type"] == "conversation.item.input_audio_transcription.failed"
    assert event["error"]["code"] == "transcription_unavailable"


def test_sound_that_was_dropped_counts_for_the_clients_clock() -> None:
    talk = Talk()
    talk.inbox.put(m.Hear(samples=np.zeros(24_000, np.float32)), rate=24_000, max_samples=24_000)
    assert talk.tell(m.SpeechStarted(at=2400, item_id="q0"))[0]["audio_start_ms"] == 100
    more = m.Hear(samples=np.zeros(48_000, np.float32))
    assert talk.inbox.put(more, rate=24_000, max_samples=48_000) == 24_000
    events = talk.ask()
    assert events[0]["audio_start_ms"] == 1100
    assert events[2]["x_dropped_ms"] == 1000


# --- sessions -----------------------------------------------------------------------------------


def test_the_first_event_shows_the_whole_session() -> None:
    session = Talk().sent[0]["session"]
    assert session["model"] == "demo"
    assert session["expires_at"] == 2_000_000_000
    assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 500
    assert session["audio"]["output"]["format"] == {"type": "audio/pcm", "rate": 24_000}


def test_an_update_changes_what_it_names_and_nothing_else() -> None:
    talk = Talk()
    detection = {
        "type": "server_vad",
        "threshold": 0.7,
        "prefix_padding_ms": 100,
        "silence_duration_ms": 800,
        "create_response": False,
        "interrupt_response": False,
    }
    talk.update(audio={"input": {"turn_detection": detection}})
    shown = talk.update(instructions="be kind", tools=[{"type": "function", "name": "f"}])
    assert shown["session"]["instructions"] == "be kind"
    assert shown["session"]["tools"] == [{"type": "function", "name": "f"}]
    kept = shown["session"]["audio"]["input"]["turn_detection"]
    assert kept == {**detection, "idle_timeout_ms": None}
    (command,) = talk.commands
    turns = command.settings.turns
    assert (turns.policy, turns.threshold, turns.prefix_s, turns.silence_s) == (
        "vad",
        0.7,
        0.1,
        0.8,
    )
    assert not turns.respond
    assert not turns.interrupt


@pytest.mark.parametrize(("eagerness", "patience"), [("low", 8), ("medium", 4), ("high", 2)])
def test_semantic_turns_ask_the_unit_lm(eagerness: str, patience: float) -> None:
    talk = Talk()
    detection = {"type": "semantic_vad", "eagerness": eagerness}
    shown = talk.update(audio={"input": {"turn_detection": detection}})
    assert shown["session"]["audio"]["input"]["turn_detection"]["eagerness"] == eagerness
    turns = talk.commands[-1].settings.turns
    assert (turns.policy, turns.patience_s) == ("unit-lm", patience)


def test_no_turn_detection_is_push_to_talk() -> None:
    talk = Talk()
    shown = talk.update(audio={"input": {"turn_detection": None}})
    assert shown["session"]["audio"]["input"]["turn_detection"] is None
    assert talk.commands[-1].settings.turns is None
    talk.feed("input_audio_buffer.commit")
    talk.feed("input_audio_buffer.clear")
    assert talk.commands[-2:] == [m.Commit(), m.ClearInput()]
    assert kinds(talk.tell(m.InputCleared())) == ["input_audio_buffer.cleared"]


def test_duplex_models_need_no_turn_detection_and_take_none() -> None:
    talk = Talk(kind="duplex")
    shown = talk.update(audio={"input": {"turn_detection": {"type": "server_vad"}}})
    assert shown["session"]["audio"]["input"]["turn_detection"] is None
    assert talk.commands == []


def test_voices_of_openai_are_the_bundles_own() -> None:
    talk = Talk(voices=("slt",))
    assert (
        talk.update(audio={"output": {"voice": "marin"}})["session"]["audio"]["output"]["voice"]
        == "marin"
    )
    assert talk.commands == []
    talk.update(audio={"output": {"voice": {"id": "slt"}}})
    assert talk.commands[-1].settings.voice == "slt"
    error = error_of(talk.feed("session.update", session={"audio": {"output": {"voice": "tom"}}}))
    assert error["param"] == "session.audio.output.voice"
    assert "default, slt, got 'tom'" in error["message"]


def test_a_voice_that_has_spoken_stays() -> None:
    talk = Talk(voices=("slt",))
    talk.answer()
    talk.update(audio={"output": {"voice": "alloy"}})
    error = error_of(
        talk.feed("session.update", session={"audio": {"output": {"voice": "slt"}}}, event_id="e1")
    )
    assert error["code"] == "cannot_update_voice"
    assert error["event_id"] == "e1"


def test_rates_are_chosen_before_the_first_sound() -> None:
    talk = Talk()
    phone = {
        "input": {"format": {"type": "audio/pcmu"}},
        "output": {"format": {"type": "audio/pcma"}},
    }
    talk.update(audio=phone)
    settings = talk.commands[-1].settings
    assert (settings.input_rate, settings.output_rate) == (8000, 8000)
    talk.feed("input_audio_buffer.append", audio=base64.b64encode(b"\x00" * 80).decode())
    assert len(talk.commands[-1].samples) == 80
    pcm = {"input": {"format": {"type": "audio/pcm"}}}
    error = error_of(talk.feed("session.update", session={"audio": pcm}))
    assert error["param"] == "session.audio"
    delta = talk.answer()[5]["delta"]
    assert len(base64.b64decode(delta)) == len(SOUND)
    said = AudioFormat(name="audio/pcma", rate=8000).decode(delta)
    np.testing.assert_allclose(said, SOUND, rtol=0.05, atol=0.001)


def test_other_rates_of_pcm_are_had_for_the_asking() -> None:
    # A reader of OpenAI's types knows 24 kHz alone: hence not judged.
    talk = Talk()
    form = {"format": {"type": "audio/pcm", "rate": 16_000}}
    outcome = talk.conversation.feed(
        json.dumps({"type": "session.update", "session": {"audio": {"input": form}}})
    )
    assert outcome.events[0]["session"]["audio"]["input"]["format"] == form["format"]
    assert outcome.commands[0].settings.input_rate == 16_000


def test_nothing_of_an_update_holds_when_a_part_of_it_cannot() -> None:
    talk = Talk(writes_text=False)
    error = error_of(
        talk.feed("session.update", session={"instructions": "x", "output_modalities": ["text"]})
    )
    assert error["param"] == "session.output_modalities"
    assert talk.update()["session"]["instructions"] == ""
    both = talk.feed("session.update", session={"output_modalities": ["text", "audio"]})
    assert error_of(both)["param"] == "session.output_modalities"


def test_a_session_may_be_sent_back_as_it_was_shown() -> None:
    talk = Talk()
    shown = talk.sent[0]["session"]
    assert talk.update(**shown)["session"] == shown
    assert talk.commands == []


def test_tokens_are_frames_of_units() -> None:
    talk = Talk()
    talk.update(max_output_tokens=100)
    assert talk.commands[-1].settings.max_answer_s == pytest.approx(4.0)
    talk.feed("response.create", response={"max_output_tokens": 50})
    assert talk.commands[-1].max_answer_s == pytest.approx(2.0)
    talk.update(max_output_tokens="inf")
    assert talk.commands[-1].settings.max_answer_s == 30.0


# --- answers that are asked for -----------------------------------------------------------------


def test_an_answer_that_was_asked_for_has_its_metadata() -> None:
    talk = Talk()
    metadata = {"client_event_id": "response_create_1"}
    talk.feed("response.create", response={"metadata": metadata, "output_modalities": ["text"]})
    (command,) = talk.commands
    assert command == m.Respond(response_id=command.response_id, modality="text")
    started = m.ResponseStarted(
        response_id=command.response_id, item_id="a1", previous_item_id=None, modality="text"
    )
    (created, *_) = talk.tell(started)
    assert created["response"]["metadata"] == metadata
    assert created["response"]["status"] == "in_progress"


@pytest.mark.parametrize(
    ("response", "param"),
    [
        ({"conversation": "none"}, "response.conversation"),
        ({"input": []}, "response.input"),
        ({"output_modalities": ["text"]}, "response.output_modalities"),
    ],
)
def test_answers_that_cannot_be_are_refused(response: JSON, param: str) -> None:
    talk = Talk(writes_text=False)
    assert error_of(talk.feed("response.create", response=response))["param"] == param
    assert talk.commands == []


@pytest.mark.parametrize(
    ("kind", "command", "code"),
    [
        ("response.create", "Respond", "conversation_already_has_active_response"),
        ("response.cancel", "Cancel", "response_cancel_not_active"),
        ("input_audio_buffer.commit", "Commit", "input_audio_buffer_commit_empty"),
    ],
)
def test_a_refusal_names_the_event_behind_it(kind: str, command: str, code: str) -> None:
    talk = Talk()
    talk.feed(kind, event_id="first")
    talk.feed(kind, event_id="second")
    refused = m.Refused(command=command, code=code, message="expected otherwise")
    errors = [error_of(talk.tell(refused)) for _ in range(2)]
    assert [error["event_id"] for error in errors] == ["first", "second"]
    assert {error["code"] for error in errors} == {code}
    # How LiveKit's plug-in tells it from errors that matter.
    assert errors[0]["message"].startswith("Cancellation failed") == (command == "Cancel")


def test_a_cancel_that_worked_is_not_taken_for_a_later_ones() -> None:
    talk = Talk()
    talk.feed("response.cancel", event_id="first")
    talk.answer(status="cancelled", reason="client_cancelled")
    talk.feed("response.cancel", event_id="second")
    refused = m.Refused(command="Cancel", code="response_cancel_not_active", message="none")
    assert error_of(talk.tell(refused))["event_id"] == "second"


# --- items --------------------------------------------------------------------------------------


def user(*content: JSON, **fields: Any) -> JSON:
    return {"type": "message", "role": "user", "content": list(content), **fields}


def test_spoken_items_are_put_into_the_history() -> None:
    talk = Talk()
    talk.ask(1)
    sound = base64.b64encode(b"\x00\x40" * 480).decode()
    item = user({"type": "input_audio", "audio": sound}, id="mine")
    assert talk.feed("conversation.item.create", item=item, previous_item_id="root") == []
    command = talk.commands[-1]
    assert (command.item_id, command.role, command.after) == ("mine", "user", "root")
    np.testing.assert_array_equal(command.samples, np.full(480, 0.5, np.float32))
    events = talk.tell(m.ItemAdded(item_id="mine", previous_item_id=None))
    assert kinds(events) == ["conversation.item.added", "conversation.item.done"]
    assert events[0]["previous_item_id"] is None
    assert events[0]["item"]["content"] == [{"type": "input_audio"}]
    (again,) = talk.feed("conversation.item.create", item=item)
    assert again["error"]["param"] == "item.id"


def test_items_that_no_speechlm_reads_are_kept_and_shown() -> None:
    talk = Talk()
    talk.ask(1)
    system = {
        "type": "message",
        "role": "system",
        "id": "s",
        "content": [{"type": "input_text", "text": "x"}],
    }
    call = {"type": "function_call_output", "call_id": "c", "output": "1", "id": "f"}
    for item in (system, call):
        events = talk.feed("conversation.item.create", item=item)
        assert kinds(events) == ["conversation.item.added", "conversation.item.done"]
    assert talk.commands == []
    assert events[0]["previous_item_id"] == "s"
    # The session does not know them: what follows one follows what stands before it.
    text = user({"type": "input_text", "text": "hi"})
    talk.feed("conversation.item.create", item=text, previous_item_id="f")
    assert talk.commands[-1].after == "q1"
    assert talk.commands[-1].text == "hi"
    (gone,) = talk.feed("conversation.item.delete", item_id="f")
    assert gone["type"] == "conversation.item.deleted"
    assert talk.feed("conversation.item.retrieve", item_id="s")[0]["item"]["id"] == "s"


@pytest.mark.parametrize(
    "content",
    [
        [],
        [{"type": "input_image", "image_url": "data:,"}],
        [{"type": "input_audio", "audio": "AAA"}],
        [{"type": "input_audio", "audio": "AAAA"}, {"type": "input_text", "text": "x"}],
    ],
)
def test_items_that_cannot_be_are_refused(content: list[JSON]) -> None:
    talk = Talk()
    error = error_of(talk.feed("conversation.item.create", item=user(*content), event_id="e"))
    assert error["event_id"] == "e"
    assert error["param"].startswith("item.content")
    assert talk.commands == []


def test_a_bundle_that_does_not_read_says_so_and_its_item_is_none() -> None:
    talk = Talk()
    item = user({"type": "input_text", "text": "hi"}, id="mine")
    talk.feed("conversation.item.create", item=item, event_id="e")
    refused = m.Refused(command="AddItem", code="text_not_read", message="expected sound, got text")
    assert error_of(talk.tell(refused))["event_id"] == "e"
    (event,) = talk.feed("conversation.item.retrieve", item_id="mine")
    assert event["error"]["code"] == "item_retrieve_invalid_item_id"


@pytest.mark.parametrize("verb", ["retrieve", "delete", "truncate"])
def test_items_that_there_are_not_have_codes_that_clients_know(verb: str) -> None:
    talk = Talk()
    more = {"content_index": 0, "audio_end_ms": 0} if verb == "truncate" else {}
    error = error_of(talk.feed(f"conversation.item.{verb}", item_id="x", event_id="rci_x", **more))
    assert error["code"] == f"item_{verb}_invalid_item_id"
    assert error["event_id"] == "rci_x"


def test_a_deleted_item_is_gone() -> None:
    talk = Talk()
    talk.ask()
    talk.answer()
    talk.feed("conversation.item.delete", item_id="a1")
    assert talk.commands == [m.DeleteItem(item_id="a1")]
    (event,) = talk.tell(m.ItemDeleted(item_id="a1"))
    assert event["item_id"] == "a1"
    assert talk.ask(2)[2]["previous_item_id"] == "q1"


def test_a_truncated_answer_loses_words_that_may_not_have_been_heard() -> None:
    talk = Talk()
    talk.ask()
    talk.answer(status="cancelled", reason="turn_detected")
    # Far beyond its end: cut to what is there, never an error.
    fields = {"item_id": "a1", "content_index": 0, "audio_end_ms": 999_000}
    assert talk.feed("conversation.item.truncate", **fields) == []
    assert talk.commands == [m.Truncate(item_id="a1", heard_s=999.0)]
    (event,) = talk.tell(m.Truncated(item_id="a1", heard_s=0.06))
    assert (event["audio_end_ms"], event["content_index"]) == (60, 0)
    (retrieved,) = talk.feed("conversation.item.retrieve", item_id="a1")
    assert retrieved["item"]["content"] == [{"type": "output_audio", "transcript": ""}]


def test_only_sound_of_answers_is_truncated() -> None:
    talk = Talk()
    talk.ask()
    talk.answer()
    fields = {"content_index": 0, "audio_end_ms": 5}
    error = error_of(talk.feed("conversation.item.truncate", item_id="q1", **fields))
    assert error["code"] == "item_truncate_invalid_item_id"
    fields["content_index"] = 1
    error = error_of(talk.feed("conversation.item.truncate", item_id="a1", **fields))
    assert error["param"] == "content_index"


def test_sound_that_never_left_was_not_heard() -> None:
    talk = Talk()
    talk.ask()
    names = {"response_id": "r1", "item_id": "a1"}
    talk.tell(
        m.ResponseStarted(**names, previous_item_id="q1", modality="audio"),
        m.Sound(**names, samples=SOUND),
        m.Sound(**names, samples=SOUND),
    )
    commands = talk.conversation.cut_unsent("r1", 2 * len(SOUND))
    assert commands == [m.Truncate(item_id="a1", heard_s=0.1)]
    talk.tell(m.ResponseEnded(**names, status="cancelled", reason="turn_detected", said_s=0.2))
    # The client did not ask: it is told of its own truncation only.
    talk.feed("conversation.item.truncate", item_id="a1", content_index=0, audio_end_ms=50)
    assert talk.tell(m.Truncated(item_id="a1", heard_s=0.1)) == []
    (event,) = talk.tell(m.Truncated(item_id="a1", heard_s=0.05))
    assert event["audio_end_ms"] == 50


# --- extras -------------------------------------------------------------------------------------


def test_events_of_our_own_come_only_to_those_who_ask() -> None:
    talk = Talk()
    measured = m.TurnMeasured(figures={"response_id": "r1", "policy_wait": 500})
    backchannel = m.Backchannel(at=2400, duration_s=0.4)
    assert talk.tell(measured, backchannel) == []
    talk.update(x_ext=True)
    events = talk.tell(measured, backchannel)
    assert kinds(events) == ["x.turn_measured", "x.backchannel"]
    assert events[0]["figures"]["policy_wait"] == 500
    assert (events[1]["audio_start_ms"], events[1]["duration_ms"]) == (100, 400)


def test_clearing_the_output_says_nothing_but_drops_its_sound() -> None:
    talk = Talk()
    outcome = talk.conversation.feed('{"type": "output_audio_buffer.clear"}')
    assert outcome.drop_sound
    assert outcome.events == []


def test_a_session_that_is_gone_is_told() -> None:
    (event,) = Talk().tell(m.Failed(code="worker_lost", message="the worker was killed"))
    judge(event)
    assert event["error"]["type"] == "server_error"
    assert event["error"]["code"] == "worker_lost"


# --- the beta dialect ---------------------------------------------------------------------------


def test_the_beta_has_other_names() -> None:
    talk = Talk("beta")
    events = talk.ask() + talk.answer()
    assert kinds(events) == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.created",
        "response.created",
        "response.output_item.added",
        "conversation.item.created",
        "response.content_part.added",
        "response.audio_transcript.delta",
        "response.audio.delta",
        "response.audio.done",
        "response.audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.done",
    ]
    response = events[-1]["response"]
    assert response["output"][0]["content"] == [{"type": "audio", "transcript": "two"}]
    assert response["modalities"] == ["text", "audio"]
    assert response["output_audio_format"] == "pcm16"
    assert "audio" not in response


def test_beta_sessions_are_flat_both_ways() -> None:
    talk = Talk("beta")
    session = talk.sent[0]["session"]
    flat = {
        "modalities": ["text", "audio"],
        "voice": "default",
        "input_audio_format": "pcm16",
        "output_audio_format": "pcm16",
        "input_audio_transcription": None,
        "max_response_output_tokens": "inf",
        "object": "realtime.session",
    }
    assert {key: session[key] for key in flat} == flat
    assert session["turn_detection"]["type"] == "server_vad"
    assert not {"audio", "type", "output_modalities", "max_output_tokens"} & set(session)
    changed = talk.update(
        modalities=["audio", "text"],
        instructions="x",
        voice="alloy",
        input_audio_format="g711_ulaw",
        output_audio_format="g711_alaw",
        input_audio_transcription={"model": "whisper-1"},
        turn_detection=None,
        temperature=0.8,
        max_response_output_tokens=100,
        tools=[],
        tool_choice="auto",
    )["session"]
    settings = talk.commands[-1].settings
    assert (settings.input_rate, settings.output_rate, settings.turns) == (8000, 8000, None)
    assert settings.max_answer_s == pytest.approx(4.0)
    assert (changed["input_audio_format"], changed["output_audio_format"]) == (
        "g711_ulaw",
        "g711_alaw",
    )
    assert changed["temperature"] == 0.8
    assert changed["turn_detection"] is None


def test_errors_name_beta_fields_in_the_beta() -> None:
    talk = Talk("beta")
    turns = {"turn_detection": {"type": "server_vad", "threshold": 3}}
    error = error_of(talk.feed("session.update", session=turns))
    assert error["param"] == "session.turn_detection.threshold"
    error = error_of(talk.feed("session.update", session={"input_audio_format": "mp3"}))
    assert error["param"].startswith("session.input_audio_format")


def test_no_order_of_events_breaks_a_conversation() -> None:
    """Out of order, repeated, for what there is not: each is answered or let pass."""
    names = {"response_id": "r1", "item_id": "a1"}
    heard = [
        m.Committed(item_id="q1", previous_item_id=None, duration_s=1.0),
        m.ResponseStarted(**names, previous_item_id="q1", modality="audio"),
        m.Sound(**names, samples=SOUND),
        m.ResponseEnded(**names, status="cancelled", reason="client_cancelled"),
        m.Truncated(item_id="a1", heard_s=0.0),
        m.ItemDeleted(item_id="a1"),
        m.Transcribed(item_id="q1", text="x"),
        m.Refused(command="Cancel", code="response_cancel_not_active", message="none"),
    ]
    for order in itertools.islice(itertools.permutations(heard), 0, 40_320, 601):
        talk = Talk()
        talk.feed("response.cancel")
        talk.tell(*order)
