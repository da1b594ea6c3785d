"""Small benchmarks that are made on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechlm.cli.main import main
from speechlm.evaluation.tasks import mini
from speechlm.evaluation.tasks.pairs import data_sha256, read_pairs
from speechlm.evaluation.tasks.results import read_results


def test_words_made_on_the_spot_differ_in_one_phone(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("pocketsphinx")
    monkeypatch.setattr(mini, "WORDS", ("kitchen", "monday", "river"))
    monkeypatch.setattr(mini, "NUM_VOICES", 2)
    words = ["evaluate", str(bundle_folder), "--suite", "mini-swuggy"]
    assert main([*words, "-o", str(tmp_path)]) == 0
    pairs = read_pairs(tmp_path / "data" / "mini-swuggy")
    assert len(pairs) == 6
    assert {pair.id for pair in pairs} == {"kitchen", "monday", "river"}
    whole = next(row for row in read_results(tmp_path) if row.name == "mini-swuggy/sum")
    assert whole.n == 3
    known = mini.known_words()
    for word in ("kitchen", "monday", "river"):
        phones = mini.spell(word, mini.Voice())
        assert mini.coarse(phones) in known
        for changed in mini.non_words(phones, known):
            assert mini.coarse(changed) not in known
            assert sum(a != b for a, b in zip(phones, changed, strict=True)) == 1
    before = data_sha256(pairs)
    mini.make_swuggy(tmp_path / "again", 1)
    assert data_sha256(read_pairs(tmp_path / "again")) == before
