from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.errors import PluginError
from speechlm.evaluation.signal.error_rates import (
    Edits,
    count_edits,
    normalise,
    pronounce,
)

jiwer = pytest.importorskip("jiwer")


def test_capitals_signs_and_spaces_do_not_matter() -> None:
    assert normalise("  Don\N{RIGHT SINGLE QUOTATION MARK}t -- press 'ONE',\n please_now! ") == (
        "don't press one please now"
    )
    assert normalise("Größe ½") == "größe 1 2"
    assert normalise("...") == ""


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_normalised_text_stays_as_it_is(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_edits_are_counted() -> None:
    found = count_edits("the cat sat down", "a cat sat right down there", "words")
    assert found == Edits(substitutions=1, deletions=0, insertions=2, hits=3)
    assert found.figure == (300.0, 4.0)
    assert count_edits("a b c", "", "words").figure == (300.0, 3.0)


words = st.lists(st.sampled_from(["ab", "cd", "e"]), max_size=6).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(words.filter(bool), words)
def test_rates_are_jiwers(expected: str, heard: str) -> None:
    for of, rate in (("words", jiwer.wer), ("characters", jiwer.cer)):
        wrong, count = count_edits(expected, heard, of).figure  # type: ignore[arg-type]
        assert wrong / count == pytest.approx(100 * rate(expected, heard))
    assert count_edits(expected, expected, "words").figure[0] == 0


def test_the_dictionary_pronounces_what_it_knows() -> None:
    pytest.importorskip("pocketsphinx")
    assert pronounce("three cats") == "TH R IY K AE T S"
    assert pronounce("three blorptish") is None
    assert pronounce("") is None


def test_without_jiwer_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(PluginError, match=r"pip install 'speechlm\[evaluate\]'"):
        count_edits("a", "b", "words")
