from pathlib import Path

import pytest

from speechlm.config import RunConfig, load_config
from speechlm.errors import ConfigError


def load(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == load(tmp_path, "train:\n") == load_config() == RunConfig()


def test_a_file_holds_only_what_differs_and_the_command_line_wins(tmp_path: Path) -> None:
    config = load(tmp_path, "seed: 2\ntrain: {max_steps: 5}\n", "train.max_steps=7", "output=a")
    assert (config.seed, config.train.max_steps, config.output) == (2, 7, Path("a"))
    assert config.store_path == Path("a/units")


@pytest.mark.parametrize(
    ("override", "value"), [("1e-4", 1e-4), ("2.5E-3", 2.5e-3), ("0.5", 0.5), ("1", 1.0)]
)
def test_a_small_number_is_a_number(override: str, value: float) -> None:
    config = load_config(overrides=[f"train.learning_rate={override}"])
    assert config.train.learning_rate == value


def test_a_text_lm_brings_the_shape_and_leaves_the_rest(tmp_path: Path) -> None:
    config = load(tmp_path, "model: {text_lm: a/b, dropout: 0.0}\n", "train.lora_rank=8")
    assert (config.model.text_lm, config.model.dropout, config.train.lora_rank) == ("a/b", 0.0, 8)


def test_options_of_a_plug_in_are_passed_on() -> None:
    config = load_config(overrides=["tokenizer.options.num_units=50", "corpus.path=nan"])
    assert config.tokenizer.options == {"num_units": 50}
    assert config.corpus.path == Path("nan")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  max_stepz: 5\n", "unknown key 'train.max_stepz'; did you mean 'train.max_ste"),
        ("max_steps: 5\n", "unknown key 'max_steps'; did you mean 'train.max_steps'? known: out"),
        ("trian: {}\n", "unknown key 'trian'; did you mean 'train'? known: output, seed, corpus"),
        ("1: 2\n", "unknown key '1'; known: output, seed, corpus, tokenizer, tokenize, layout,"),
        ("train: 3\n", "train: expected keys and values, got 3"),
        ("- a\n", "run.yaml: expected keys and values, got a list"),
        ("a: [\n", "run.yaml: not a YAML file that can be read: while parsing a flow node"),
        ("train: {max_steps: soon}\n", "train.max_steps: input should be a valid integer, unabl"),
        ("train: {max_steps: 0}\n", "train.max_steps must be at least 1, got 0"),
        ("train: {speech_fraction: 2}\n", "train.speech_fraction must be within 0..1, got 2.0"),
        ("train: {loss_on: some}\n", "train.loss_on: input should be 'answer' or 'all', got 'so"),
        ("train: {learning_rate: -1}\n", "expected 0 <= train.min_learning_rate <= train.learn"),
        ("model: {num_heads: 5}\n", "model.num_heads (5) must divide model.model_dim (256) into"),
        ("model: {num_heads: 0}\n", "model.num_heads must be at least 1, got 0"),
        ("model: {num_kv_heads: 3}\n", "model.num_heads (4) must be a multiple of model.num_kv_"),
        ("model: {dropout: 1}\n", "model.dropout must be at least 0 and below 1, got 1.0"),
        (
            "model: {text_lm: a, num_layers: 6, head: depth}\n",
            "model.text_lm=a brings its own shape",
        ),
        (
            "model: {text_lm: a, ffn_dim: 9, tie_embeddings: true}\n",
            "no model.ffn_dim, model.tie_e",
        ),
        (
            "model: {head: depht}\n",
            "model.head: input should be 'parallel' or 'depth', got 'depht'",
        ),
        (
            "model: {depth: {layers: 2}}\n",
            "unknown key 'model.depth.layers'; did you mean 'model.d",
        ),
        ("model: {new_rows: zero}\n", "model.new_rows: input should be 'normal', 'mean' or 'acou"),
        ("train: {lora_rank: 4}\n", "train.lora_rank corrects the weights of a text LM: expected"),
        ("train: {lora_rank: -1}\n", "train.lora_rank must be at least 0, got -1"),
        (
            "layout: {spans: {mean_words: 0}}\n",
            "layout.spans.mean_words of at least 1, got 0.5, 0.3",
        ),
        ("layout: {nam: flat}\n", "unknown key 'layout.nam'; did you mean 'layout.name'?"),
        ("generate: {top_p: 0}\n", "expected top_k >= 0 and 0 < top_p <= 1, got 0 and 0"),
        ("generate: {temperature: .nan}\n", "expected temperature 0, or 0.001 to 1000, got nan"),
        ("generate: {temperature: .inf}\n", "expected temperature 0, or 0.001 to 1000, got inf"),
        ("generate: {temperature: 1.0e-9}\n", "temperature 0, or 0.001 to 1000, got 1e-09"),
        ("generate: {guidance: .nan}\n", "0 <= guidance <= 100, got 0.0, 1.0 and nan"),
        ("generate: {repetition_penalty: .inf}\n", "repetition_penalty <= 100 and"),
        ("tokenize: {shard_size: 0}\n", "tokenize.shard_size must be at least 1, got 0"),
        ("corpus: {kind: text}\n", "corpus.kind is 'text': expected corpus.text=FILE, got none"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nope", "expected key=value, got 'nope'"),
        ("=3", "expected key=value, got '=3'"),
        ("seed.x=5", "'seed.x=5': 'seed' is a value, not a section"),
        ("seed=[", "'seed=[': the value is not YAML"),
        ("sede=3", "unknown key 'sede'; did you mean 'seed'?"),
    ],
)
def test_a_wrong_override_is_quoted(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "seed: 1\n", override)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.yaml: no such configuration file"):
        load_config(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="not a YAML file that can be read"):
        load_config(tmp_path)
