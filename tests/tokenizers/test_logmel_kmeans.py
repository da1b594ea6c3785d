"""logmel-kmeans keeps a tokenizer's promises and hears past loudness, channel and cutting."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import CheckpointError, ConfigError, CorpusError
from speechlm.testing import check_tokenizer, check_tokenizer_stream
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans

OPTIONS = {"num_units": 64, "iterations": 5}


@pytest.fixture(scope="module")
def waves() -> list[Tensor]:
    clips = list(human_clips().values())[:12]
    return [load_audio(clip.path, 16_000) for clip in clips]


@pytest.fixture(scope="module")
def tokenizer(waves: list[Tensor]) -> LogMelKMeans:
    return LogMelKMeans.fit(waves, OPTIONS, seed=1)


def test_it_keeps_every_promise_of_a_tokenizer(
    tokenizer: LogMelKMeans, waves: list[Tensor]
) -> None:
    check_tokenizer(tokenizer, waves[:4])


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 3000), chunk=st.integers(1, 1000))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    tokenizer: LogMelKMeans, waves: list[Tensor], samples: int, chunk: int
) -> None:
    check_tokenizer_stream(tokenizer, waves[0][4000 : 4000 + samples], chunk)


def test_loudness_does_not_change_most_units(tokenizer: LogMelKMeans, waves: list[Tensor]) -> None:
    """The normaliser starts from the corpus' level, so what it hears first may differ."""
    wave = torch.cat(waves)
    loud, quiet = tokenizer.encode(torch.stack([wave, 0.3 * wave]))
    settled = 100
    same = (loud.codes == quiet.codes)[0, settled:].double().mean()
    assert same > 0.6, f"only {same:.0%} of units survive another level"


def test_the_same_seed_gives_the_same_tokenizer_and_another_seed_another(
    tokenizer: LogMelKMeans, waves: list[Tensor]
) -> None:
    assert LogMelKMeans.fit(waves, OPTIONS, seed=1).fingerprint == tokenizer.fingerprint
    assert LogMelKMeans.fit(waves, OPTIONS, seed=2).fingerprint != tokenizer.fingerprint


def test_fitting_reads_a_long_corpus_in_bounded_memory(waves: list[Tensor]) -> None:
    """Only a sample is kept: a corpus of many times its size is read to the end."""
    read = 0

    def many() -> object:
        nonlocal read
        for _ in range(30):
            for wave in waves:
                read += 1
                yield wave

    options = {**OPTIONS, "fit_frames": 500}
    assert LogMelKMeans.fit(many(), options, seed=1).vocab_size == 64  # type: ignore[arg-type]
    assert read == 30 * len(waves)


def test_a_corpus_too_small_for_its_units_is_refused(waves: list[Tensor]) -> None:
    with pytest.raises(CorpusError, match=r"at least 5000 frames .* got \d+ .*num_units lower"):
        LogMelKMeans.fit(waves[:1], {"num_units": 5000}, seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_unit": 5},
            "unknown key 'tokenizer.options.num_unit'; did you mean 'tokenizer.options.num_units'",
        ),
        ({"num_units": 1}, "num_units must be at least 2, got 1"),
        ({"num_cepstra": 81}, r"num_cepstra must be within 1\.\.num_mels"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LogMelKMeans.fit([], options, seed=1)


def test_changed_weights_are_refused(tokenizer: LogMelKMeans, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "one")
    LogMelKMeans.fit([torch.randn(64_000)], OPTIONS, seed=3).save(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").replace(tmp_path / "one" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"was saved as .* but its content is"):
        LogMelKMeans.load(tmp_path / "one")
