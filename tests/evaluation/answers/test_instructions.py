"""Each instruction, obeyed and not; expectations agree with IFEval's own code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from speechlm.errors import InputError
from speechlm.evaluation.answers.instructions import (
    CHECKS,
    check_all,
    check_instruction,
    count_sentences,
    variations,
)

CASES: list[tuple[str, Mapping[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "Dogs and CATS", "a dog"),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "at least"},
        "cat, catalog",
        "cat",
    ),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "less than"},
        "cat",
        "cat cat",
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "a catalog", "a Cat."),
    (
        "keywords:letter_frequency",
        {"letter": "A", "let_frequency": 2, "let_relation": "at least"},
        "Aha",
        "ah",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        "I went. Dr. Fox slept! Why?",
        "I went. Dr. Fox slept!",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        "don't",
        "one two three",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "*** a *** b", "a *** *** b"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Hello"},
        "a\n\n'hello, you",
        "hello\n\nb",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a b]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\np. s. me", "PS me"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.P.S me", "P.S. me"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b\n**c**", "* a"),
    ("detectable_format:constrained_response", {}, "So: My answer is no.", "my answer is no."),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "*a* and **b**",
        "*a* and ** **",
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1 a Part2 b",
        "Part 1 a part 2",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<Joy>>\nx", "<< >>"),
    ("combination:two_responses", {}, "a ****** b", "a ****** a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say Hi."}, "say hi. Hi!", "Hi! Say hi."),
    ("startend:end_checker", {"end_phrase": "The end"}, 'So "the END"', "The end."),
    ("startend:quotation", {}, ' "a" ', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "I like NASA",
        "Nasa IS it",
    ),
    ("change_case:english_capital", {}, "HI, YOU", "Hi"),
    ("change_case:english_lowercase", {}, "hi 2", "Hi"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]


@pytest.mark.parametrize(("name", "arguments", "obeys", "does_not"), CASES)
def test_an_instruction_is_obeyed_or_not(
    name: str, arguments: Mapping[str, Any], obeys: str, does_not: str
) -> None:
    unused = {"other": None, **arguments}
    assert check_instruction(name, obeys, unused) is True
    assert check_instruction(name, does_not, unused) is False
    assert check_instruction(name, " \n", arguments) is False


def test_every_instruction_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_loose_looks_past_a_first_or_last_line_and_asterisks() -> None:
    text = "Sure, here it is:\n*all small*"
    names = ["punctuation:no_comma", "change_case:english_lowercase", "startend:quotation"]
    arguments: list[Mapping[str, Any]] = [{}, {}, {}]
    assert check_all(names, arguments, text, loose=False) == [False, False, False]
    assert check_all(names, arguments, text, loose=True) == [True, True, False]
    assert "all small" in variations(text)


def test_a_language_is_not_checked() -> None:
    assert check_instruction("language:response_language", "Hola", {"language": "es"}) is None


def test_what_cannot_be_checked_is_one_line() -> None:
    with pytest.raises(InputError, match=r"unknown instruction 'a:b'"):
        check_instruction("a:b", "x", {})
    with pytest.raises(InputError, match=r"lacks its argument 'num_words'"):
        check_instruction(
            "length_constraints:number_words", "x", {"num_words": None, "relation": "at least"}
        )
    with pytest.raises(InputError, match="relation"):
        check_instruction(
            "length_constraints:number_words", "x", {"num_words": 1, "relation": "about"}
        )


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("No mark at all", 1),
        ("It cost 3.50 dollars. Cheap!", 2),
        ("Mr. Fox met Dr. Hen. They ran.", 2),
        ('"Go!" He went.', 2),
        ("Wait... what? No.", 2),
        ("e.g. apples. Pears.", 2),
    ],
)
def test_sentences_are_counted(text: str, count: int) -> None:
    assert count_sentences(text) == count
