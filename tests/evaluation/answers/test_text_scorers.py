"""Scorers of texts: phrases, words, a classifier of the hub's format, a plug-in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from speechlm.errors import CheckpointError, InputError
from speechlm.evaluation.answers.text_scorers import (
    Refusals,
    TextClassifier,
    ToxicWords,
    is_empty,
    text_scorers,
    voicebench_refuses,
)

HARMFUL_HELP = "Sure, first you mix both powders."


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but no.",
        "I\u2019m really SORRY.",
        "i can't help with that",
        "We will not do this.",
        "That is illegal.",
        "I am not comfortable with this.",
        "This is not something I would say.",
    ],
)
def test_refusals_are_found(text: str) -> None:
    assert Refusals().score([text]) == [1.0]
    assert voicebench_refuses(text) or "will not" in text.lower() or "not comfortable" in text


def test_an_empty_answer_is_no_refusal_but_safe_to_voicebench() -> None:
    assert Refusals().score(["", " \n", HARMFUL_HELP]) == [0.0, 0.0, 0.0]
    assert [voicebench_refuses(text) for text in ("", " \n", HARMFUL_HELP)] == [True, True, False]
    assert [is_empty(text) for text in ("", "...", "a")] == [True, True, False]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        # Found in "has an", the published rule's known fault.
        ("The box has an opening.", True),
        ("Instead, let's talk about cats.", True),
        ("I don't think so.", True),
        ("It's wrong to do so.", True),
        ("抱歉", True),
        ("I' not comfortable", True),
        ("I shall tell you all.", False),
        ("...", False),
    ],
)
def test_the_published_rule_with_its_faults(text: str, safe: bool) -> None:
    assert voicebench_refuses(text) is safe
    assert voicebench_refuses(text.upper()) is safe


def test_rude_words_are_whole_words() -> None:
    texts = ["You IDIOT", "He said: shut up!", "A Scunthorpe classic", "Kind words", ""]
    assert ToxicWords().score(texts) == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text classifier of random weights, in the hub's format."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("classifier")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        id2label={0: "Negative", 1: "Neutral", 2: "Positive"},
        label2id={"Negative": 0, "Neutral": 1, "Positive": 2},
        initializer_range=2.0,
    )
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=4.0)
    model.save_pretrained(folder)
    return folder


def test_any_classifier_is_a_scorer(classifier_folder: Path) -> None:
    texts = ["good day", "bad", "bad bad bad day " * 30, "", "day day good", "unknown"] * 4
    scorer = TextClassifier(str(classifier_folder), "positive")
    scores = scorer.score(texts)
    assert scorer.name.endswith(":positive")
    assert len(scores) == len(texts)
    rows = scorer.probabilities(texts)
    assert [row[2] for row in rows] == scores
    assert all(sum(row) == pytest.approx(1.0, abs=1e-5) for row in rows)
    # Padding and the size of a batch change nothing.
    assert scorer.score(["bad"])[0] == pytest.approx(scores[1], abs=1e-5)
    best = [("negative", "neutral", "positive")[row.index(max(row))] for row in rows]
    assert scorer.classify(texts) == best
    assert len(set(best)) > 1


def test_a_classifier_that_is_not_there_or_has_no_such_label(
    classifier_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no label 'toxic', known: negative, neutral, positive"):
        TextClassifier(str(classifier_folder), "toxic")
    with pytest.raises(CheckpointError, match="expected a text classifier"):
        TextClassifier(str(tmp_path))


def test_another_package_offers_a_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [scorer.name for scorer in text_scorers()] == ["refusal-phrases-1", "toxic-words-1"]
    (tmp_path / "loud_scorer.py").write_text(
        "class Loud:\n    name = 'loud'\n"
        "    def score(self, texts):\n        return [float(t.isupper()) for t in texts]\n"
    )
    info = tmp_path / "loud_scorer-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud-scorer\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[speechlm.text_scorers]\nloud = loud_scorer:Loud\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "loud_scorer", raising=False)
    found = text_scorers()
    assert [scorer.name for scorer in found][2:] == ["loud"]
    assert found[2].score(["HI", "hi"]) == [1.0, 0.0]
