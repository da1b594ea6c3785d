"""Texts become labels that are the same for every language, and nothing is lost in silence."""

# ruff: noqa: RUF001 (letters of the phonetic alphabet are meant as they are)

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.data import espeak
from speechlm.data.espeak import Voice
from speechlm.errors import ConfigError, InputError, PluginError
from speechlm_tokenizers.phones import CHARACTERS, IPA, Labels, edit_distance, phones


@pytest.fixture
def _espeak() -> None:
    pytest.importorskip("espeakng_loader")


@pytest.mark.usefixtures("_espeak")
@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en-us", "What comes after seven?", "wʌtkʌmzæftɚsɛvən"),
        ("en-us", "Seven. Eleven, twelve; one", "sɛvənᵻlɛvəntwɛlvwʌn"),
        ("de", "Schöne Grüße", "ʃøːnəɡɾyːsə"),
        ("fr", "un bon vin blanc", "œ̃bɔ̃vɛ̃blɑ̃"),
        ("cmn", "你好", "ni2χɑu2"),
        ("hi", "नमस्ते", "nəmʌsteː"),
    ],
)
def test_texts_of_any_language_become_symbols_of_one_table(
    language: str, text: str, expected: str
) -> None:
    assert phones(text, language) == expected
    labels = Labels(language=language).encode(text)
    assert 1 <= min(labels) <= max(labels) <= len(IPA)
    assert Labels(language=language).decode(labels) == expected


@pytest.mark.usefixtures("_espeak")
def test_another_script_within_a_text_leaves_no_marks_of_its_language() -> None:
    said = phones("seven слово eight", "en-us")
    assert set(said) <= set(IPA)
    assert said.startswith("sɛvən")
    assert said.endswith("eɪt")
    assert len(said) > len("sɛvəneɪt")


@pytest.mark.usefixtures("_espeak")
def test_reading_and_speaking_do_not_disturb_each_other() -> None:
    voice = Voice(name="en-gb-scotland", variant="f2")
    espeak.restart()
    spoken = espeak.speak("seven", voice).samples
    assert phones("acht", "de") == "axt"
    again = espeak.speak("seven", voice).samples
    assert len(again) == len(spoken)
    espeak.restart()
    assert phones("acht", "de") == "axt"
    assert phones("eight", "en-us") == "eɪt"


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=CHARACTERS + "ABC.,?!\n-", min_size=1))
def test_characters_keep_what_is_written_but_case_and_punctuation(text: str) -> None:
    labels = Labels(kind="characters")
    kept = "".join(c for c in " ".join(text.lower().split()) if c in CHARACTERS)
    if kept:
        assert labels.decode(labels.encode(text)) == kept
    else:
        with pytest.raises(InputError, match="text that says something"):
            labels.encode(text)


def test_an_alphabet_of_ones_own_is_used() -> None:
    labels = Labels(kind="characters", alphabet="abcß")
    assert labels.encode("Aß, c") == [1, 4, 3]
    assert len(labels) == 4


def test_a_character_without_a_label_is_named() -> None:
    with pytest.raises(InputError, match=r"no label for '24é' of the text 'Café 42'; .* add to it"):
        Labels(kind="characters").encode("Café 42")


@pytest.mark.usefixtures("_espeak")
def test_a_phone_without_a_label_is_named() -> None:
    with pytest.raises(InputError, match="no label for 'v'"):
        Labels(alphabet="sɛən").encode("seven")


@pytest.mark.usefixtures("_espeak")
@pytest.mark.parametrize("text", ["", " . ", "\0"], ids=repr)
def test_a_text_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a text that says something"):
        Labels().encode(text)


@pytest.mark.usefixtures("_espeak")
def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no language 'en-mars'; expected a code such as en-us"):
        Labels(language="en-mars").check()
    assert phones("eight") == "eɪt"


def test_a_character_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"each character once, got 'b' again"):
        Labels(alphabet="abcb")


def test_without_the_wheel_one_line_says_what_to_install() -> None:
    """In a process of its own: the library is loaded once a process."""
    program = (
        "import sys; sys.modules['espeakng_loader'] = None\n"
        "from speechlm_tokenizers.phones import Labels\n"
        "Labels(kind='characters').check()\n"
        "Labels().check()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert f"{PluginError.__name__}: phones of texts need espeak-ng" in done.stderr
    assert "pip install 'speechlm[corpus]'" in done.stderr


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_edit_distance_is_a_distance_and_counts_single_edits(
    one: list[int], two: list[int]
) -> None:
    distance = edit_distance(one, two)
    assert distance == edit_distance(two, one)
    assert (distance == 0) == (one == two)
    assert abs(len(one) - len(two)) <= distance <= max(len(one), len(two))
    assert edit_distance(one, [*one, 1]) == 1
    assert edit_distance([*two, 2, *one], [*two, 3, *one]) == 1
