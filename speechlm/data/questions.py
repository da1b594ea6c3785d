"""A small world of spoken questions, each answered by one recorded word.

Eleven relations (what follows a number, the month before another, a letter's code word, …)
over :func:`speechlm.data.human.human_clips`. Letters come with an example word, as people
say them on the telephone: "B" and "D" alone are hard to tell apart for anyone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

# fmt: off
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)
TENS = (
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred",
)
DAYS = (
    "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday",
)
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth",
)
CODE_WORDS = (
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india",
    "juliet", "kilo", "lima", "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra",
    "tango", "uniform", "victor", "whiskey", "xray", "yankee", "zulu",
)
EXAMPLES = (
    "apple", "boat", "candle", "dog", "eagle", "fish", "garden", "hat", "island", "jacket",
    "kitchen", "lemon", "mother", "nose", "orange", "pencil", "queen", "river", "summer",
    "table", "umbrella", "village", "window", "xylophone", "yellow", "zebra",
)
# fmt: on
OPPOSITES = {
    "hello": "goodbye",
    "enabled": "disabled",
    "uppercase": "lowercase",
    "added": "removed",
    "plus": "minus",
    "yesterday": "tomorrow",
    "tomorrow": "yesterday",
}
SUMS = (("two", "three"), ("four", "five"), ("eight", "four"), ("ten", "ten"))
DIFFERENCES = (("nine", "five"), ("eight", "seven"), ("ten", "four"), ("twelve", "two"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question of the world."""

    name: str
    """Unique, usable in file names, e.g. ``after-seven``."""
    wordings: tuple[str, ...]
    """Ways to ask it, the plainest first."""
    answer: str
    """Name of the recorded answer."""


def questions() -> list[Question]:
    """Every question of the world, in a fixed order."""
    return list(_numbers()) + list(_calendar()) + list(_words())


def _numbers() -> Iterator[Question]:
    for this, following in pairwise(NUMBERS[:13]):
        yield _question(
            f"after-{this}",
            following,
            f"What comes after {this}?",
            f"Which number follows {this}?",
            f"What is the next number after {this}?",
        )
    for this in ("one", *NUMBERS[14:]):
        yield _question(
            f"before-{this}",
            NUMBERS[NUMBERS.index(this) - 1],
            f"What comes before {this}?",
            f"Which number comes right before {this}?",
            f"What is the number before {this}?",
        )
    for a, b in SUMS:
        yield _question(
            f"{a}-plus-{b}",
            NUMBERS[NUMBERS.index(a) + NUMBERS.index(b)],
            f"What is {a} plus {b}?",
            f"How much is {a} plus {b}?",
            f"Please add {a} and {b}.",
        )
    for a, b in DIFFERENCES:
        yield _question(
            f"{a}-minus-{b}",
            NUMBERS[NUMBERS.index(a) - NUMBERS.index(b)],
            f"What is {a} minus {b}?",
            f"How much is {a} minus {b}?",
            f"Please take {b} away from {a}.",
        )
    for this, following in pairwise(TENS):
        yield _question(
            f"ten-more-than-{this}",
            following,
            f"What is ten more than {this}?",
            f"Which number is ten more than {this}?",
            f"Please add ten to {this}.",
        )
    for this, following in pairwise(ORDINALS):
        yield _question(
            f"after-{this}",
            following,
            f"Which place comes after {this}?",
            f"What place follows {this} place?",
            f"Who comes in right after the {this}?",
        )


def _calendar() -> Iterator[Question]:
    for i, day in enumerate(DAYS):
        yield _question(
            f"after-{day}",
            DAYS[(i + 1) % 7],
            f"Which day follows {day}?",
            f"What day comes after {day}?",
            f"What is the day after {day}?",
        )
    for i, day in enumerate(DAYS):
        yield _question(
            f"before-{day}",
            DAYS[(i - 1) % 7],
            f"Which day comes before {day}?",
            f"What day is right before {day}?",
            f"What is the day before {day}?",
        )
    for i, month in enumerate(MONTHS):
        yield _question(
            f"before-{month}",
            MONTHS[(i - 1) % 12],
            f"Which month comes before {month}?",
            f"What month is right before {month}?",
            f"What is the month before {month}?",
        )


def _words() -> Iterator[Question]:
    for word, example in zip(CODE_WORDS, EXAMPLES, strict=True):
        letter = word[0].upper()
        yield _question(
            f"letter-{letter}",
            word,
            f"What is the word for the letter {letter}, as in {example}?",
            f"Which code word stands for {letter}, as in {example}?",
            f"{letter}, as in {example}: what is the code word?",
        )
    for word, opposite in OPPOSITES.items():
        yield _question(
            f"opposite-of-{word}",
            opposite,
            f"What is the opposite of {word}?",
            f"Which word means the opposite of {word}?",
            f"Please say the opposite of {word}.",
        )


def _question(name: str, answer: str, *wordings: str) -> Question:
    return Question(name=name.lower(), answer=answer.lower(), wordings=wordings)
