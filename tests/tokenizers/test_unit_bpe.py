"""unit-bpe merges units without losing one, exactly streamed, on top of any tokenizer."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import (
    CheckpointError,
    ConfigError,
    CorpusError,
    InputError,
    PluginError,
)
from speechlm.parts import load_part, save_part
from speechlm.testing import check_tokenizer, check_tokenizer_stream
from speechlm.units import Units, collapse_repeats
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_tokenizers.merges import Merges
from speechlm_tokenizers.prosody import Prosody
from speechlm_tokenizers.unit_bpe import UnitBPE
from speechlm_tokenizers.wrapping import pack

RATE = 16_000
BOTH = pytest.mark.parametrize("collapse", [False, True], ids=["frames", "collapsed"])


@functools.cache
def recordings() -> tuple[Tensor, ...]:
    return tuple(load_audio(clip.path, RATE) for clip in human_clips("prompts").values())


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unit-bpe") / "base"
    LogMelKMeans.fit(recordings()[:6], {"num_units": 60, "iterations": 3}, seed=1).save(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizers(base_folder: Path) -> dict[bool, UnitBPE]:
    return {
        collapse: UnitBPE.fit(
            recordings(),
            {"base": str(base_folder), "vocab_size": 400, "collapse": collapse, "span_s": 0.5},
            seed=1,
        )
        for collapse in (False, True)
    }


@BOTH
def test_it_keeps_every_promise_of_a_tokenizer(
    tokenizers: dict[bool, UnitBPE], collapse: bool
) -> None:
    tokenizer = tokenizers[collapse]
    waves = [wave[: 9_000 + 7_777 * at] for at, wave in enumerate(recordings()[:3])]
    whole = tokenizer.encode(torch.cat(recordings()[:6])[None])[0]
    assert len(whole.codes.unique()) > 50
    check_tokenizer(tokenizer, waves)


@BOTH
@settings(max_examples=10, deadline=None)
@given(samples=st.integers(1, 30_000), chunk=st.integers(100, 12_000))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    tokenizers: dict[bool, UnitBPE], collapse: bool, samples: int, chunk: int
) -> None:
    tokenizer, wave = tokenizers[collapse], recordings()[0][4000 : 4000 + samples]
    check_tokenizer_stream(tokenizer, wave, chunk)
    stream = tokenizer.stream()
    for piece in torch.split(wave, chunk):
        stream.push(piece)
    stream.finish()
    durations = tokenizer.encode(wave[None])[0].durations
    assert durations is not None
    assert torch.equal(stream.durations, durations)


def test_tokens_are_the_very_units_that_were_merged(tokenizers: dict[bool, UnitBPE]) -> None:
    tokenizer = tokenizers[False]
    for wave in recordings()[:5]:
        units, base = tokenizer.encode(wave[None])[0], tokenizer.base.encode(wave[None])[0]
        expanded = tokenizer.expand_tokens(units)
        assert torch.equal(expanded.codes, base.codes)
        assert expanded.fingerprint == base.fingerprint
        assert units.codes.shape[1] < 0.7 * base.codes.shape[1], "hardly anything was merged"


def test_collapsed_tokens_are_the_same_sounds_for_the_same_time(
    tokenizers: dict[bool, UnitBPE],
) -> None:
    """Only how a token's frames are shared among its units is a guess, and mostly right."""
    tokenizer, right, frames = tokenizers[True], 0, 0
    for wave in recordings():
        units, base = tokenizer.encode(wave[None])[0], tokenizer.base.encode(wave[None])[0]
        expanded = tokenizer.expand_tokens(units).codes
        assert expanded.shape == base.codes.shape
        assert units.durations is not None
        # Span by span: at an edge one run becomes two, and the token after may begin anew.
        for ours, theirs in zip(
            torch.split(expanded, tokenizer.span, dim=1),
            torch.split(base.codes, tokenizer.span, dim=1),
            strict=True,
        ):
            assert torch.equal(collapse_repeats(ours)[0], collapse_repeats(theirs)[0])
        right += int((expanded == base.codes).sum())
        frames += base.num_frames
    assert right > 0.85 * frames
    merged = sum(tokenizer.encode(wave[None])[0].codes.shape[1] for wave in recordings())
    plain = sum(tokenizers[False].encode(wave[None])[0].codes.shape[1] for wave in recordings())
    assert merged < plain


def test_without_durations_collapsed_tokens_last_as_on_average(
    tokenizers: dict[bool, UnitBPE],
) -> None:
    tokenizer = tokenizers[True]
    long, told = 0, 0
    for wave in recordings():
        units = tokenizer.encode(wave[None])[0]
        bare = Units(codes=units.codes, frame_rate=units.frame_rate, fingerprint=units.fingerprint)
        long += tokenizer.expand_tokens(bare).num_frames
        told += units.num_frames
    assert abs(long / told - 1) < 0.1


UNITS = st.lists(st.integers(0, 6), min_size=0, max_size=40)


@settings(max_examples=60)
@given(units=UNITS, merges=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=8))
@BOTH
def test_whatever_the_merges_nothing_is_lost(
    collapse: bool, units: list[int], merges: list[tuple[int, int]]
) -> None:
    known, kept = 7, []
    for left, right in merges:
        if max(left, right) < known and (left, right) not in kept:
            kept.append((left, right))
            known = len(Merges(7, torch.tensor(kept), None).table)
    pairs = torch.tensor(kept, dtype=torch.int64).reshape(-1, 2)
    sizes = Merges(7, pairs, None).table
    run_lengths = torch.linspace(1, 4, len(sizes.units)).double() if collapse else None
    merger = Merges(7, pairs, run_lengths)
    said = torch.tensor(units, dtype=torch.int64)
    tokens, durations = merger.apply(said)
    assert int(durations.sum()) == len(said)
    back = merger.table.expand(tokens, durations)
    if collapse:
        assert len(back) == len(said)
        assert torch.equal(collapse_repeats(back[None])[0], collapse_repeats(said[None])[0])
    else:
        assert torch.equal(back, said)
        assert torch.equal(merger.table.expand(tokens), said)


def test_its_folder_needs_nothing_else(base_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder, base)
    options = {"base": str(base), "vocab_size": 100, "collapse": True}
    fitted = UnitBPE.fit(recordings()[:3], options, seed=1)
    fitted.save(tmp_path / "saved")
    shutil.rmtree(base)
    loaded = UnitBPE.load(tmp_path / "saved")
    assert loaded.fingerprint == fitted.fingerprint
    assert loaded.base.fingerprint == fitted.base.fingerprint
    units = [one.encode(recordings()[0][None])[0] for one in (fitted, loaded)]
    assert torch.equal(units[0].codes, units[1].codes)
    assert loaded.vocab_size == fitted.vocab_size <= 100


def test_the_same_corpus_gives_the_same_merges(
    tokenizers: dict[bool, UnitBPE], base_folder: Path
) -> None:
    options = {"base": str(base_folder), "vocab_size": 400, "span_s": 0.5}
    assert UnitBPE.fit(recordings(), options, seed=9).fingerprint == tokenizers[False].fingerprint
    other = UnitBPE.fit(recordings(), {**options, "vocab_size": 399}, seed=1)
    assert other.fingerprint != tokenizers[False].fingerprint


def test_only_so_much_of_a_corpus_is_heard(base_folder: Path) -> None:
    heard = []

    def many() -> Any:
        for wave in recordings():
            heard.append(len(wave))
            yield wave

    options = {"base": str(base_folder), "vocab_size": 100, "fit_frames": 200}
    UnitBPE.fit(many(), options, seed=1)
    assert len(heard) == 2


def test_a_token_that_there_is_not_is_refused(tokenizers: dict[bool, UnitBPE]) -> None:
    tokenizer = tokenizers[False]
    units = tokenizer.encode(recordings()[0][None])[0]
    wrong = Units(
        codes=torch.tensor([[0, tokenizer.vocab_size]]),
        frame_rate=units.frame_rate,
        fingerprint=units.fingerprint,
    )
    size = tokenizer.vocab_size
    with pytest.raises(InputError, match=rf"within 0\.\.{size - 1}, got 0\.\.{size}$"):
        tokenizer.expand_tokens(wrong)


@BOTH
def test_a_duration_that_a_token_cannot_have_is_refused(
    tokenizers: dict[bool, UnitBPE], collapse: bool
) -> None:
    tokenizer = tokenizers[collapse]
    token = int(tokenizer.table.sizes.argmax())
    size = int(tokenizer.table.sizes[token])
    least = "at least " if collapse else ""
    with pytest.raises(InputError, match=rf"token {token} lasts {least}{size} frames, got .* 1$"):
        tokenizer.table.expand(torch.tensor([0, token]), torch.tensor([1, 1]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"base": None}, ConfigError, r"'unit-bpe' goes on top .*tokenizer\.options\.base=FOLDER"),
        ({"base": "nowhere/at-all"}, CheckpointError, "holds no config.json"),
        ({"base": "logmel-kmeans"}, PluginError, "is fitted on a corpus before it is used"),
        ({"base": "logmel-kmean"}, PluginError, "did you mean 'logmel-kmeans'"),
        ({"vocab_size": 59}, ConfigError, "vocab_size of at least 60, the base's units, got 59"),
        ({"vocabsize": 99}, ConfigError, r"did you mean 'tokenizer\.options\.vocab_size'"),
        ({"span_s": 0}, ConfigError, "span_s above 0"),
        ({"min_count": 0}, ConfigError, "min_count and fit_frames of 1 or more"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(
    base_folder: Path, options: dict[str, Any], error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        UnitBPE.fit(recordings()[:1], {"base": str(base_folder), **options}, seed=1)
    assert "\n" not in str(caught.value)


def test_a_base_of_several_codebooks_or_of_merged_units_is_refused(
    tokenizers: dict[bool, UnitBPE], base_folder: Path, tmp_path: Path
) -> None:
    several = {"base": str(base_folder), "streams": ["energy"]}
    Prosody.fit(recordings()[:1], several, seed=1).save(tmp_path / "several")
    tokenizers[False].save(tmp_path / "merged")
    for name, what in (("several", "2 units a frame"), ("merged", "last unequally long")):
        with pytest.raises(ConfigError, match=rf"one codebook, one a frame.*{what}.*choose"):
            UnitBPE.fit(recordings()[:1], {"base": str(tmp_path / name)}, seed=1)


def test_an_empty_corpus_is_refused(base_folder: Path) -> None:
    with pytest.raises(CorpusError, match="got none of any length"):
        UnitBPE.fit([], {"base": str(base_folder)}, seed=1)


def test_a_base_that_was_changed_is_noticed(base_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(base_folder, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cannot be read"):
        UnitBPE.fit(recordings()[:1], {"base": str(tmp_path / "base")}, seed=1)


def test_a_part_that_keeps_other_files_cannot_be_held(tmp_path: Path) -> None:
    class WithNotes(LogMelKMeans):
        def save(self, folder: Path) -> None:
            super().save(folder)
            (folder / "notes.txt").write_text("of its own", encoding="utf-8")

    part = WithNotes.fit(recordings()[:1], {"num_units": 8, "iterations": 1}, seed=1)
    with pytest.raises(PluginError, match=r"cannot be held .* got notes\.txt besides"):
        pack(part, {}, {})


def test_a_holder_that_was_changed_is_noticed(
    tokenizers: dict[bool, UnitBPE], tmp_path: Path
) -> None:
    tokenizers[False].save(tmp_path / "one")
    part = load_part(tmp_path / "one", "unit-bpe")
    centroids = part.tensors["base.centroids"] + 1
    save_part(
        tmp_path / "two", "unit-bpe", part.config, {**part.tensors, "base.centroids": centroids}
    )
    (tmp_path / "two" / "model.safetensors").replace(tmp_path / "one" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"was saved as .* but its content is"):
        UnitBPE.load(tmp_path / "one")
