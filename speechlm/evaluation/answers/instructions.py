"""Instructions whose obedience is a plain formula: at least 40 words, no comma, end with ...

The kinds of IFEval, by their names there. Two definitions: ``strict`` looks at the answer;
``loose`` is content if it, or it without its first line, last line, both, or asterisks does.

Where the reference uses a trained model, this is what is done here: sentences are split at final
marks before a capital, not by punkt; words of capitals are runs of letters, not NLTK's tokens;
that a text in capitals is English is not looked at; which language it is cannot be told, so
``language:response_language`` is None, not checked.

Source:
    Zhou et al. 2023 (IFEval), arXiv:2311.07911.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speechlm.errors import InputError

Arguments = Mapping[str, Any]
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|prof|st|vs|e\.g|i\.e|[A-Z])\.$", re.IGNORECASE)


def check_instruction(name: str, text: str, arguments: Arguments) -> bool | None:
    """Whether a text obeys; None where this cannot be told here.

    Args:
        name: As ``length_constraints:number_words``.
        arguments: Of the instruction; those that are None are as if absent.

    Raises:
        InputError: No such instruction, or it lacks an argument.
    """
    if name == "language:response_language":
        return None
    if name not in CHECKS:
        raise InputError(f"unknown instruction {name!r}, known: {', '.join(CHECKS)}")
    if not text.strip():
        return False
    try:
        return CHECKS[name](text, {k: v for k, v in arguments.items() if v is not None})
    except KeyError as error:
        raise InputError(f"instruction {name!r} lacks its argument {error}") from error


def check_all(
    names: Sequence[str], arguments: Sequence[Arguments], text: str, *, loose: bool
) -> list[bool | None]:
    """Whether a text obeys each of several instructions.

    Raises:
        InputError: As :func:`check_instruction`.
    """
    found: list[bool | None] = []
    for name, each in zip(names, arguments, strict=True):
        tried = [
            check_instruction(name, one, each) for one in (variations(text) if loose else [text])
        ]
        found.append(None if None in tried else any(tried))
    return found


def variations(text: str) -> list[str]:
    """A text, and without first line, last line, both; each also without asterisks."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(each.replace("*", "") for each in cut)]


def count_sentences(text: str) -> int:
    """Sentences, split at ``.``, ``!``, ``?`` before a capital, digit or quotation mark."""
    count, start = 0, 0
    plain = " ".join(text.split())
    for match in re.finditer(r"[.!?]+[\"')\]]*(?=\s+[\"'(\[]?[A-Z0-9]|\s*$)", plain):
        if _ABBREVIATION.search(plain[start : match.end()]) and match.end() < len(plain):
            continue
        count, start = count + 1, match.end()
    return count + bool(plain[start:].strip())


def _compare(count: int, relation: str, wanted: int) -> bool:
    if relation not in ("less than", "at least"):
        raise InputError(f"expected the relation 'less than' or 'at least', got {relation!r}")
    return count < wanted if relation == "less than" else count >= wanted


def _occurrences(text: str, keyword: str) -> int:
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _paragraphs(text: str, given: Arguments) -> bool:
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    if not all(parts[1:-1]):
        return False
    return len([part for part in parts if part]) == int(given["num_paragraphs"])


def _first_word(text: str, given: Arguments) -> bool:
    parts = text.split("\n\n")
    place = given["nth_paragraph"]
    filled = sum(bool(part.strip()) for part in parts)
    if filled != given["num_paragraphs"] or not 1 <= place <= filled:
        return False
    words = parts[place - 1].split()
    if not words:
        return False
    first = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0]
    return first.lower() == str(given["first_word"]).lower()


def _postscript(text: str, given: Arguments) -> bool:
    marker = given["postscript_marker"].strip()
    patterns = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return bool(re.search(patterns.get(marker, re.escape(marker)), text, re.IGNORECASE))


def _highlights(text: str, given: Arguments) -> bool:
    single = re.findall(r"\*([^\n*]*)\*", text)
    double = re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(part.strip()) for part in (*single, *double)) >= int(given["num_highlights"])


def _sections(text: str, given: Arguments) -> bool:
    marker = re.escape(given["section_spliter"].strip())
    return len(re.findall(rf"{marker}\s?\d+", text)) >= int(given["num_sections"])


def _json(text: str, _: Arguments) -> bool:
    inner = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(inner)
    except ValueError:
        return False
    return True


def _two_responses(text: str, _: Arguments) -> bool:
    parts = [part.strip() for part in text.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _capital_words(text: str, given: Arguments) -> bool:
    words = re.findall(r"\w+(?:[-.'\u2019]\w+)*", text)
    count = sum(word.isupper() for word in words)
    return _compare(count, given["capital_relation"], given["capital_frequency"])


def _quoted(text: str, _: Arguments) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


CHECKS: Mapping[str, Callable[[str, Arguments], bool]] = {
    "keywords:existence": lambda text, given: all(
        _occurrences(text, word) for word in given["keywords"]
    ),
    "keywords:frequency": lambda text, given: _compare(
        _occurrences(text, given["keyword"].strip()), given["relation"], given["frequency"]
    ),
    "keywords:forbidden_words": lambda text, given: (
        not any(
            re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)
            for word in given["forbidden_words"]
        )
    ),
    "keywords:letter_frequency": lambda text, given: _compare(
        text.lower().count(given["letter"].strip().lower()),
        given["let_relation"],
        given["let_frequency"],
    ),
    "length_constraints:number_sentences": lambda text, given: _compare(
        count_sentences(text), given["relation"], given["num_sentences"]
    ),
    "length_constraints:number_words": lambda text, given: _compare(
        len(re.findall(r"\w+", text)), given["relation"], given["num_words"]
    ),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, given: (
        len(re.findall(r"\[.*?\]", text)) >= given["num_placeholders"]
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": lambda text, given: (
        len(re.findall(r"^\s*(?:\*[^*]|-).*$", text, re.MULTILINE)) == given["num_bullets"]
    ),
    "detectable_format:constrained_response": lambda text, _: any(
        f"My answer is {word}." in text for word in ("yes", "no", "maybe")
    ),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda text, _: any(
        title.strip("<> ") for title in re.findall(r"<<[^\n]+>>", text)
    ),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda text, given: (
        text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())
    ),
    "startend:end_checker": lambda text, given: (
        text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())
    ),
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text, _: text.isupper(),
    "change_case:english_lowercase": lambda text, _: text.islower(),
    "punctuation:no_comma": lambda text, _: "," not in text,
}
"""By its name in IFEval: whether a text that has words obeys."""
