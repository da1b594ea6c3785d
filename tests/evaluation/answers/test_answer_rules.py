"""What rules read in free answers; what the published rules read beside them was the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlm.evaluation.answers.answer_rules import (
    contains_reference,
    find_choice,
    find_yes_no,
    majority,
    token_f1,
)


@pytest.mark.parametrize("letter", "ABCD")
@pytest.mark.parametrize(
    "frame",
    [
        "{}",
        "{}.",
        "({})",
        "{}) a stone",
        "{}. Paris",
        "The answer is {}.",
        "the answer is {}",
        "The correct answer is ({}).",
        "I would choose option {}.",
        "Option {}, because plants need light.",
        "The answer is: **{}**",
        "**{}) Oxygen**",
        "I think that the answer is {} because it is warm",
        "well {} is the best answer",
        "A good question. The answer is {}.",
        "The answer is \\boxed{{{}}}.",
        "My choice is {}",
        "the correct option is \u2018{}\u2019.",
    ],
)
def test_a_letter_is_found_however_it_is_said(frame: str, letter: str) -> None:
    assert find_choice(frame.format(letter)) == letter
    assert find_choice(frame.format(letter.lower())) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I am not sure.",
        "A dog is an animal.",
        "the answer is a dog",
        "Well, a cat, a dog, and a bird.",
        "It could be A, or B.",
        "The answer is E.",
        "I'd say so",
        "the answer is unclear",
    ],
)
def test_nothing_is_guessed(text: str) -> None:
    assert find_choice(text) is None


def test_what_is_stated_outweighs_what_is_mentioned() -> None:
    assert find_choice("(A) and (C) are close, I would choose C") == "C"
    assert find_choice("The answer is C.", "AB") is None


@pytest.mark.parametrize(
    ("text", "task", "said"),
    [
        ("Yes, it is.", "", True),
        ("No.", "", False),
        ("So the answer is no, since he left.", "", False),
        ("After all steps: yes", "", True),
        ("Yes and then no", "", True),
        ("The answer is yes. The answer is no", "", None),
        ("I do not know", "", None),
        ("", "", None),
        ("The sentence is plausible.", "sports_understanding-3", True),
        ("That is not very plausible.", "sports_understanding-3", False),
        ("It is implausible, I think.", "sports_understanding-3", False),
        ("The sentence is plausible.", "navigate", None),
        ("You would not return to the starting point.", "navigate-1", False),
        ("You end up back at the starting point.", "navigate-1", True),
        ("Ann lies.", "web_of_lies-1", False),
        ("Ann tells the truth.", "web_of_lies-1", True),
        ("Ann does not tell the truth.", "web_of_lies-1", False),
    ],
)
def test_yes_and_no_in_free_text(text: str, task: str, said: bool | None) -> None:
    assert find_yes_no(text, task) is said


def test_a_reference_is_words_in_a_row() -> None:
    assert contains_reference("It was the Eiffel Tower, in Paris!", "eiffel tower")
    assert contains_reference("an apple", "The apple.")
    assert not contains_reference("The tower of Eiffel", "Eiffel tower")
    assert not contains_reference("concatenate", "cat")
    assert not contains_reference("anything", "the")
    assert token_f1("the tower of Eiffel", "Eiffel tower") == pytest.approx(0.8)
    assert token_f1("", "x") == 0.0


@given(st.text(), st.text(alphabet="abc ", min_size=1))
def test_a_reference_that_is_contained_has_full_recall(text: str, reference: str) -> None:
    assert 0.0 <= token_f1(text, reference) <= 1.0
    if contains_reference(text, reference):
        assert token_f1(text, reference) > 0.0
    assert token_f1(reference, reference) in (0.0, 1.0)


def test_most_must_say_yes() -> None:
    assert majority([True, True, False])
    assert not majority([True, False])
    assert not majority([True, None, None])
    assert not majority([])
