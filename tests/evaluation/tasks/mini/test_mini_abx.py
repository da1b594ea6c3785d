"""Phones that are made on the spot, for ABX."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechlm.evaluation.abx import read_items
from speechlm.evaluation.tasks.job import Job, System
from speechlm.evaluation.tasks.mini import phones
from speechlm.evaluation.tasks.mini.phones import ITEMS_NAME, make_abx, run_mini_abx, words_of
from speechlm.evaluation.tasks.phone_abx import data_sha256, read_abx


def test_phones_made_on_the_spot_are_told_apart(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    monkeypatch.setattr(phones, "NUM_VOICES", 2)
    monkeypatch.setattr(phones, "TIMES", 2)
    monkeypatch.setattr(phones, "VOWELS", ("I", "a", "u:"))
    monkeypatch.setattr(phones, "CONSONANTS", ("p", "s", "m"))
    found = {}
    for source in ("mfcc", str(bundle_folder)):
        system = System(source)
        job = Job(name="mini-abx", system=system, data=None, output=tmp_path, seed=1)
        found[source] = {row.variant: row for row in run_mini_abx(job)}
    items = read_items(tmp_path / "data" / "mini-abx" / ITEMS_NAME)
    # Two voices say twice three vowels between four pairs of neighbours, three consonants
    # between two.
    assert len(items) == 2 * 2 * (3 * 4 + 3 * 2)
    assert {item.phone for item in items} == {"I", "a", "u", "p", "s", "m"}
    assert ("b", "d") in {(item.before, item.after) for item in items}
    plain, units = found["mfcc"], found[str(bundle_folder)]
    assert plain["within/angular"].n == 12
    assert (plain["within/angular"].value or 0) < 15 < 50
    assert (plain["within/angular"].value or 0) <= (plain["across/angular"].value or 0)
    assert (units["across/identical"].value or 0) < 50
    before = data_sha256(tmp_path / "data" / "mini-abx", {"phones": items})
    make_abx(tmp_path / "again", 1)
    again = read_abx(tmp_path / "again")
    assert data_sha256(tmp_path / "again", again) == before


def test_words_are_what_pauses_part() -> None:
    spans = [("a", 0.0, 0.1), ("s", 0.1, 0.2), ("a", 0.2, 0.3), ("b", 0.4, 0.5), ("d", 0.5, 0.6)]
    assert [[phone for phone, _, _ in word] for word in words_of(spans)] == [["a", "s", "a"]]
