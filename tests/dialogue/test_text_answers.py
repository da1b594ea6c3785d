"""A bundle that writes down what it hears, and what it says, before it says it."""

from __future__ import annotations

import functools

import pytest
from small_bundle import small_bundle
from small_talk import QUESTION, Talk, settings, speech
from text_bundle import with_text

pytest.importorskip("onnxruntime")

from speechlm import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.dialogue.messages import (
    Cancel,
    Commit,
    Committed,
    Hear,
    Respond,
    ResponseEnded,
    Sound,
    Text,
    Transcribed,
)
from speechlm.model.decoder import Decoder
from speechlm.model.unit_lm import UnitLM


@functools.cache
def writer() -> SpeechLM:
    """An LM that writes what it heard and what it says, then says it; trained on nothing."""
    return with_text(small_bundle(), "chain")


def ask(seed: int, **changes: object) -> Talk:
    wanted = {"turns": None, "lead_s": 0, "seed": seed, "max_answer_s": 1.0, **changes}
    talk = Talk(writer(), settings(sampling=SamplingConfig(temperature=1.0), **wanted))
    talk.do(Hear(samples=speech(*QUESTION)), Commit(), Respond(response_id="r"))
    return talk


def test_an_answer_comes_with_what_was_heard_and_what_is_said() -> None:
    talk = ask(6)
    talk.work()
    ended = talk.last(ResponseEnded)
    assert ended.text
    assert "".join(piece.delta for piece in talk.all(Text)) == ended.text
    (heard,) = talk.all(Transcribed)
    assert heard.text
    assert heard.item_id == talk.last(Committed).item_id
    kinds = talk.kinds()
    assert kinds.index("Text") < kinds.index("Sound")


def test_a_text_answer_has_no_sound() -> None:
    talk = ask(6, modality="text")
    talk.work()
    ended = talk.last(ResponseEnded)
    spoken = ask(6)
    spoken.work()
    assert ended.text == spoken.last(ResponseEnded).text
    assert not talk.all(Sound)


def test_what_was_heard_is_told_though_the_answer_is_cut_off() -> None:
    talk = ask(6, lead_s=0.1)
    while not talk.all(Sound):
        talk.hub.step()
    talk.do(Cancel())
    assert talk.all(Transcribed)
    assert [type(event) for event in talk.events].count(Transcribed) == 1


def test_writing_without_end_is_ended() -> None:
    """An LM that never comes to speak has no seconds of an answer to count."""
    whole = writer()
    decoder = Decoder(whole.lm.decoder.config)
    weights = dict(whole.lm.decoder.state_dict())
    head = weights["lm_head.weight"].clone()
    head[: whole.lm.vocabulary.first_text] = 0  # no mark ever ends a text
    head *= 30
    weights["lm_head.weight"] = head
    decoder.load_state_dict(weights)
    lm = UnitLM(decoder, whole.lm.vocabulary, whole.lm.layout, whole.lm.text_tokenizer)
    talk = Talk(
        SpeechLM(whole.tokenizer, lm, whole.vocoder),
        settings(turns=None, lead_s=0, max_answer_s=0.2),
    )
    talk.do(Hear(samples=speech(*QUESTION)), Commit(), Respond(response_id="r"))
    talk.work()
    ended = talk.last(ResponseEnded)
    assert (ended.status, ended.reason) == ("incomplete", "max_output_tokens")
    assert ended.output_units == 0
