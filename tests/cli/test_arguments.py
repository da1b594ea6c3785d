"""The words of a run: YAML, overrides and corpora, in any order."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest

from speechlm.cli import fit, tokenize, train
from speechlm.cli.arguments import field_docstrings, parse
from speechlm.config import RunConfig, TrainConfig
from speechlm.errors import ConfigError


def read(module: ModuleType, *words: str) -> Namespace:
    args = Namespace()
    parse(module, "test", words, into=args)
    return args


def test_without_words_the_defaults_hold() -> None:
    assert read(train).config == RunConfig()


def test_yaml_then_overrides_in_any_order_with_options_between(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text("output: there\ntrain: {max_steps: 3, warmup_steps: 7}\n")
    for words in (
        ["train.max_steps=5", str(run), "--output", "here"],
        [str(run), "-o", "here", "train.max_steps=5"],
        ["-o", "here", str(run), "train.max_steps=5"],
    ):
        config = read(train, *words).config
        assert config.output == Path("here")
        assert config.train == TrainConfig(max_steps=5, warmup_steps=7)


@pytest.mark.parametrize("corpus", ["clips", "cuts.jsonl.gz", "2024", "a b", "x/a=b", "räume", "-"])
def test_any_other_word_is_the_corpus_of_a_command_that_takes_one(corpus: str) -> None:
    config = read(fit, "seed=7", corpus).config
    assert config.corpus_path == Path(corpus)
    assert config.seed == 7


def test_a_command_without_a_corpus_refuses_other_words() -> None:
    with pytest.raises(ConfigError, match=r"expected RUN.yaml or key=value, got 'clips'"):
        read(train, "clips")


def test_two_corpora_or_two_configurations_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected one corpus, got a, b"):
        read(fit, "a", "b")
    with pytest.raises(ConfigError, match=r"expected one configuration, got a.yaml, b.yml"):
        read(train, "a.yaml", "b.yml")


def test_a_value_may_end_like_a_yaml_file() -> None:
    assert read(fit, "corpus.path=cuts.yaml").config.corpus_path == Path("cuts.yaml")


def test_tokenize_takes_a_tokenizer_and_a_shard() -> None:
    args = read(tokenize, "clips", "--tokenizer", "bundle", "--shard", "3/64", "--keep-going")
    default = RunConfig()
    assert args.config == replace(
        default,
        corpus=replace(default.corpus, path=Path("clips")),
        tokenizer=replace(default.tokenizer, path=Path("bundle")),
    )
    assert args.shard == (3, 64)
    assert args.keep_going


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "a/b", "0/0", "-1/2"])
def test_a_shard_that_does_not_exist_is_refused(
    shard: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        read(tokenize, f"--shard={shard}")
    assert stop.value.code == 2
    assert "expected I/N with 1 <= I <= N" in capsys.readouterr().err


def test_every_command_of_a_run_takes_its_words() -> None:
    parser = ArgumentParser()
    fit.add_arguments(parser)
    assert parser.parse_intermixed_args(["a", "-o", "b", "c=d"]).words == ["a", "c=d"]


@dataclass
class Example:
    """Some settings."""

    said: int = 1
    """What it is,
    on two lines."""
    unsaid: int = 2


def test_docstrings_of_fields_are_read_from_the_source() -> None:
    assert field_docstrings(Example) == {"said": "What it is,\non two lines."}
