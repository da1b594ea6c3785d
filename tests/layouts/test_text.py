"""The text tokenizer: any of Hugging Face's, and the same everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speechlm.errors import CheckpointError, InputError
from speechlm.layouts.text import TextTokenizer

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CORPUS = ["the cat sat on the mat, and so it goes: the end of 2023 and of 2023"] * 3


def byte_level(vocab_size: int = 300, **options: object) -> TextTokenizer:
    """Like GPT-2's, Llama 3's or Qwen's."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<end>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    for name, value in options.items():
        setattr(tokenizer, name, value)
    return TextTokenizer(
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    )


def pieces() -> TextTokenizer:
    """Like Llama 2's or Mistral's: a space is put before the text."""
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    scores = [("<unk>", 0.0), ("▁the", -1.0), ("▁cat", -1.5), *((x, -5.0) for x in letters)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=0))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    return TextTokenizer(
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    )


TEXT = byte_level()
KINDS = {"byte level": TEXT, "pieces": pieces()}


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("")
@example(" two  spaces\n🙂 ")
@settings(deadline=None)
def test_a_text_comes_back(text: str) -> None:
    tokens = TEXT.encode(text)
    assert tokens.dtype == torch.int64
    assert tokens.ndim == 1
    assert TEXT.decode(tokens) == text


@pytest.mark.parametrize("kind", KINDS)
@given(words=st.lists(st.text("abcthe é🙂,", max_size=6).map(lambda w: w.replace(" ", ""))))
@example(words=[])
@example(words=["the", "cat", "", "the"])
@settings(deadline=None)
def test_tokens_of_words_are_the_tokens_of_the_text(kind: str, words: list[str]) -> None:
    text = KINDS[kind]
    parts = text.encode_words(words)
    assert len(parts) == len(words)
    whole = text.encode(" ".join(words))
    assert torch.equal(torch.cat([*parts, torch.tensor([], dtype=torch.int64)]), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_each_word_has_its_own_tokens(kind: str) -> None:
    text = KINDS[kind]
    words = ["the", "cat", "sat", "on", "the"]
    assert [text.decode(part).strip() for part in text.encode_words(words)] == words


def test_nothing_is_added_to_a_text() -> None:
    added = tokenizers.processors.TemplateProcessing(
        single="<end> $A <end>", special_tokens=[("<end>", 0)]
    )
    adding = byte_level(post_processor=added)
    assert torch.equal(adding.encode("the cat"), TEXT.encode("the cat"))
    assert torch.equal(torch.cat(adding.encode_words(["the", "cat"])), TEXT.encode("the cat"))


def test_special_tokens_are_not_spoken() -> None:
    end = TEXT.encode("<end>")
    assert end.tolist() == [0]
    assert TEXT.decode(torch.cat([TEXT.encode("so"), end])) == "so"


def test_a_saved_tokenizer_is_the_same_one(tmp_path: Path) -> None:
    for name, text in KINDS.items():
        text.save(tmp_path / name)
        again = TextTokenizer.load(tmp_path / name)
        assert again.size == text.size
        assert again.fingerprint == text.fingerprint
        assert torch.equal(again.encode("the cat"), text.encode("the cat"))


def test_only_a_tokenizers_folder_is_replaced(tmp_path: Path) -> None:
    TEXT.save(tmp_path / "text")
    KINDS["pieces"].save(tmp_path / "text")
    assert TextTokenizer.load(tmp_path / "text").size == KINDS["pieces"].size
    (tmp_path / "text" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=r"text holds mine\.txt; expected a folder of its own"):
        TEXT.save(tmp_path / "text")
    with pytest.raises(InputError, match=r"mine\.txt holds a file; expected"):
        TEXT.save(tmp_path / "text" / "mine.txt")


def test_the_fingerprint_is_the_same_on_every_machine_and_version() -> None:
    # Training a tokenizer is deterministic; an older or newer transformers must not rename it.
    assert KINDS["pieces"].fingerprint == "text-fbc04e3c9d074a82"


def test_other_tokenizers_of_one_size_have_other_fingerprints() -> None:
    lower = byte_level(normalizer=tokenizers.normalizers.Lowercase())
    split = byte_level(
        pre_tokenizer=tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Digits(individual_digits=True),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )
    assert lower.size == split.size == TEXT.size
    assert len({TEXT.fingerprint, lower.fingerprint, split.fingerprint}) == 3
    assert byte_level().fingerprint == TEXT.fingerprint
    assert byte_level(vocab_size=270).fingerprint != TEXT.fingerprint


def test_tokens_that_it_does_not_have_are_refused() -> None:
    with pytest.raises(InputError, match=rf"text tokens in 0\.\.{TEXT.size - 1}, got 0\.\.9999"):
        TEXT.decode(torch.tensor([0, 9999]))


def test_a_slow_tokenizer_and_an_empty_one_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match=r"with a tokenizer\.json, got Slow"):
        TextTokenizer(Slow())
    empty = tokenizers.Tokenizer(tokenizers.models.BPE())
    with pytest.raises(InputError, match="at least 1 token, got none"):
        TextTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=empty))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a text tokenizer: it holds no tokenizer\.json"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="transformers cannot open the text tokenizer of"):
        TextTokenizer.load(tmp_path)


def test_the_hub_is_asked_for_tokenizer_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    TEXT.save(tmp_path / "hub")
    assert TextTokenizer.load("someone/text").fingerprint == TEXT.fingerprint
    assert asked[0][0] == "someone/text"
    assert not any("safetensors" in pattern for pattern in asked[0][1])
    (tmp_path / "hub" / "tokenizer.json").unlink()
    (tmp_path / "hub" / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="someone/text on the hub holds no text tokenizer"):
        TextTokenizer.load("someone/text")

    def fail(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no such repository\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"that the hub gives: no such repository$"):
        TextTokenizer.load("someone/text")
