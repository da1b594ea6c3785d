"""Small benchmarks of pairs that are made on the spot, in the published layouts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from speechlm.audio import load_audio
from speechlm.cli.main import main
from speechlm.data.espeak import Voice, spell
from speechlm.data.questions import Question
from speechlm.evaluation.tasks.mini import sentences, sound, stories, words
from speechlm.evaluation.tasks.pair_suites import MAKERS
from speechlm.evaluation.tasks.pairs import READERS, data_sha256
from speechlm.evaluation.tasks.results import read_results

pytest.importorskip("espeakng_loader")
pytest.importorskip("pocketsphinx")


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "WORDS", ("kitchen", "monday", "river"))
    monkeypatch.setattr(words, "NUM_VOICES", 2)


@pytest.mark.usefixtures("few_words")
def test_non_words_differ_in_one_phone_and_are_in_no_dictionary(
    bundle_folder: Path, tmp_path: Path
) -> None:
    command = ["evaluate", str(bundle_folder), "--suite", "mini-swuggy", "-o", str(tmp_path)]
    assert main(command) == 0
    pairs = READERS["swuggy"](tmp_path / "data" / "mini-swuggy")
    assert Counter(pair.id for pair in pairs) == {"kitchen": 2, "monday": 2, "river": 2}
    whole = next(row for row in read_results(tmp_path) if row.name == "mini-swuggy/sum")
    assert whole.n == 3
    known = words.known_words()
    for word in ("kitchen", "monday", "river"):
        phones = spell(word, Voice())
        assert words.coarse(phones) in known
        for changed in words.non_words(phones, known):
            assert words.coarse(changed) not in known
            assert sum(a != b for a, b in zip(phones, changed, strict=True)) == 1
    before = data_sha256(pairs)
    (tmp_path / "again").mkdir()
    words.make_swuggy(tmp_path / "again", 1)
    assert data_sha256(READERS["swuggy"](tmp_path / "again")) == before


def test_rules_are_broken_by_longer_and_by_shorter_sentences() -> None:
    kinds: dict[str, list[int]] = {}
    for one in sentences.minimal_pairs(1):
        assert one.right != one.wrong
        kinds.setdefault(one.kind, []).append(len(one.wrong) - len(one.right))
    assert set(kinds) == {"agreement", "determiner", "order"}
    for kind in ("agreement", "determiner"):
        grown = kinds[kind]
        assert sum(length > 0 for length in grown) == sum(length < 0 for length in grown)
    ids = [(one.kind, one.id) for one in sentences.minimal_pairs(1)]
    assert len(set(ids)) == len(ids)


def test_sentences_are_said_in_each_voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "NUM_RULES", 2)
    sentences.make_sblimp(tmp_path, 1)
    pairs = READERS["sblimp"](tmp_path)
    assert Counter(pair.type for pair in pairs) == {
        kind: 2 * sentences.NUM_VOICES for kind in ("agreement", "determiner", "order")
    }


def test_pauses_are_put_in_two_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "NUM_AUDITED", 2)
    sentences.make_prosaudit(tmp_path, 1)
    pairs = READERS["prosaudit"](tmp_path)
    assert Counter(pair.type for pair in pairs) == {"protosyntax": 4, "lexical": 4}
    pause = round(sentences.PAUSE_S * 16_000)
    for pair in pairs:
        both = [load_audio(path, 16_000) for path in (pair.positive, pair.negative)]
        assert len(both[0]) == len(both[1])
        where = []
        for wave in both:
            quiet = (wave == 0).float()
            runs = torch.nn.functional.avg_pool1d(quiet[None], pause - 20, 1)[0]
            assert runs.max() == 1
            where.append(int(runs.argmax()))
        assert where[0] != where[1]


def test_stories_end_on_their_topic_and_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"after-monday": "tuesday", "after-seven": "eight", "day": "friday", "number": "nine"}
    asked = [
        Question(name=name, wordings=(f"{name}?",), answer=answer)
        for name, answer in answers.items()
    ]
    monkeypatch.setattr(stories, "questions", lambda: asked)
    sounds = {}
    for name, make in (("tsc", stories.make_tsc), ("ssc", stories.make_ssc)):
        (tmp_path / name).mkdir()
        make(tmp_path / name, 1)
        for pair in READERS[name](tmp_path / name):
            assert pair.prompt == tmp_path / name / f"{pair.id}_mutual.wav"
            sounds[name, pair.id] = pair.positive.read_bytes(), pair.negative.read_bytes()
    said = {answers[name]: right for (_, name), (right, _) in sounds.items()}
    assert len(set(said.values())) == 4
    days = {said["tuesday"], said["friday"]}
    for (name, id), (right, wrong) in sounds.items():
        assert right == said[answers[id]]
        assert wrong != right
        assert ((wrong in days) == (right in days)) == (name == "ssc")
    assert [stories.topic(word) for word in ("may", "first", "zulu")] == ["month", "place", "word"]


def test_sound_changes_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "NUM_PAIRS", 1)
    sound.make_salmon(tmp_path, 1)
    pairs = READERS["salmon"](tmp_path)
    assert {pair.type for pair in pairs} == {"speaker", "gender", "pitch", "room", "background"}
    for pair in pairs:
        right, wrong = (load_audio(path, 16_000) for path in (pair.positive, pair.negative))
        third = min(len(right), len(wrong)) // 4
        if pair.type != "background":  # that one is brought to one peak
            assert torch.equal(right[:third], wrong[:third])
        assert not torch.equal(right[-third:], wrong[-third:])


def test_an_untrained_lm_does_no_better_than_chance(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "WORDS", words.WORDS[::3])
    monkeypatch.setattr(words, "NUM_VOICES", 1)
    monkeypatch.setattr(sentences, "NUM_VOICES", 1)
    monkeypatch.setattr(sentences, "NUM_AUDITED", 16)
    monkeypatch.setattr(sentences, "NUM_RULES", 12)
    monkeypatch.setattr(sound, "NUM_PAIRS", 6)
    every = stories.questions()[::4]
    monkeypatch.setattr(stories, "questions", lambda: every)
    suites = [word for name in MAKERS for word in ("--suite", name)]
    assert main(["evaluate", str(bundle_folder), *suites, "-o", str(tmp_path)]) == 0
    found = [row for row in read_results(tmp_path) if not row.subset]
    assert {row.metric for row in found} == set(MAKERS)
    for row in found:
        assert row.ci95 is not None
        assert row.ci95[0] <= 50 <= row.ci95[1], row.name
