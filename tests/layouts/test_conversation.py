import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechlm.errors import InputError
from speechlm.layouts.conversation import (
    decode_conversation,
    decode_speech,
    encode_conversation,
    encode_speech,
    reply_prompt,
    speech_prompt,
)
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.units import Units

VOCABULARY = Vocabulary(tokenizer_fingerprint="tokenizer-01", stream_sizes=(9,))
FRAMES = st.one_of(
    st.just([]),
    st.lists(st.integers(0, 8), min_size=1, max_size=1),
    st.lists(st.integers(0, 8), max_size=30),
)


def units_of(frames: list[int]) -> Units:
    return Units(
        codes=torch.tensor([frames], dtype=torch.int64), frame_rate=50.0, fingerprint="tokenizer-01"
    )


@given(FRAMES, FRAMES)
def test_a_conversation_decodes_to_what_was_encoded(question: list[int], answer: list[int]) -> None:
    sequence = encode_conversation(VOCABULARY, units_of(question), units_of(answer))
    assert len(sequence) == len(question) + len(answer) + 3
    asked, answered = decode_conversation(VOCABULARY, sequence.ids)
    assert asked.tolist() == [question]
    assert answered.tolist() == [answer]


@given(FRAMES)
def test_a_recording_decodes_to_what_was_encoded(frames: list[int]) -> None:
    sequence = encode_speech(VOCABULARY, units_of(frames))
    assert decode_speech(VOCABULARY, sequence.ids).tolist() == [frames]
    assert sequence.loss_weights.tolist() == [[0.0] + [1.0] * (len(frames) + 1)]


@given(FRAMES, FRAMES)
def test_a_prompt_is_how_the_sequence_begins(question: list[int], answer: list[int]) -> None:
    whole = encode_conversation(VOCABULARY, units_of(question), units_of(answer)).ids[0]
    prompt = reply_prompt(VOCABULARY, units_of(question))
    assert torch.equal(whole[: len(prompt)], prompt)
    alone = encode_speech(VOCABULARY, units_of(question)).ids[0]
    assert torch.equal(alone[:-1], speech_prompt(VOCABULARY, units_of(question)))


def test_only_the_answer_counts_unless_the_question_is_weighted() -> None:
    question, answer = units_of([1, 2]), units_of([3, 4, 5])
    plain = encode_conversation(VOCABULARY, question, answer)
    assert plain.loss_weights.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    weighted = encode_conversation(VOCABULARY, question, answer, question_weight=0.5)
    assert weighted.loss_weights.tolist() == [[0, 0.5, 0.5, 0.5, 1, 1, 1, 1]]


@pytest.mark.parametrize("cut", [slice(1, None), slice(None, -1), slice(0, 2)])
def test_a_part_of_a_sequence_is_refused(cut: slice) -> None:
    conversation = encode_conversation(VOCABULARY, units_of([1, 2]), units_of([3])).ids[0]
    with pytest.raises(InputError, match="one conversation"):
        decode_conversation(VOCABULARY, conversation[cut])
    with pytest.raises(InputError, match="one recording"):
        decode_speech(VOCABULARY, encode_speech(VOCABULARY, units_of([1, 2])).ids[0][cut])
