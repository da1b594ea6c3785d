"""Units that last unequally long, and codebooks of unequal size, from the tokenizer to the LM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_text import text_tokenizer

from speechlm.audio import load_audio
from speechlm.config import SpansConfig
from speechlm.data.corpus import Word
from speechlm.data.encoding import encode_long
from speechlm.data.human import human_clips
from speechlm.data.shards import StoredUnits, UnitFormat
from speechlm.data.store import UnitStore, write_store
from speechlm.errors import InputError
from speechlm.layouts.registry import build_layout
from speechlm.layouts.text import TextTokenizer
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.plugins import load_vocoder
from speechlm.training.content import ContentPlan
from speechlm.training.sequences import SequenceSet
from speechlm.units import Units
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_tokenizers.prosody import Prosody
from speechlm_tokenizers.unit_bpe import UnitBPE
from speechlm_vocoders.centroid_mel import CentroidMel
from speechlm_vocoders.unit_bpe import UnitBPEVocoder

CLIPS = [load_audio(clip.path, 16_000) for clip in list(human_clips("prompts").values())[:4]]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any-kind") / "base"
    LogMelKMeans.fit(CLIPS, {"num_units": 40, "iterations": 3}, seed=1).save(folder)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["frames", "collapsed"])
def merging(request: pytest.FixtureRequest, base_folder: Path) -> UnitBPE:
    options = {"base": str(base_folder), "vocab_size": 200, "collapse": request.param}
    return UnitBPE.fit(CLIPS, options, seed=1)


def stored(name: str, units: Units, words: tuple[Word, ...] | None = None) -> StoredUnits:
    return StoredUnits(
        id=name, units=units, words=words, split="train", duration_s=units.duration_s
    )


def test_a_store_keeps_tokens_with_their_durations(merging: UnitBPE, tmp_path: Path) -> None:
    encoded = [merging.encode(wave[None])[0] for wave in CLIPS]
    rows = [stored(str(at), units) for at, units in enumerate(encoded)]
    write_store(tmp_path / "units", UnitFormat.of(merging), rows)
    store = UnitStore.open(tmp_path / "units")
    assert store.format.variable_rate
    for row, units in zip(store.rows(), encoded, strict=True):
        assert torch.equal(row.units.codes, units.codes)
        assert row.units.durations is not None
        assert torch.equal(row.units.durations, units.durations)
        assert row.units.expand() is row.units
        assert merging.expand_tokens(row.units).num_frames == units.num_frames
    # What the LM learns are the tokens, not their frames.
    layout = build_layout("flat", {}, 1)
    vocabulary = Vocabulary(
        tokenizer_fingerprint=store.fingerprint,
        stream_sizes=layout.stream_sizes(store.codebook_sizes),
    )
    plan = ContentPlan(layout, num_codebooks=1, text_tokenizer=None, spans=SpansConfig())
    sequences = SequenceSet.of_split(store, layout, vocabulary, plan, "train", max_length=9999)
    lengths = [units.codes.shape[1] + 2 for units in encoded]
    assert sequences.lengths().tolist() == lengths
    vocabulary.check(encoded[0])
    with pytest.raises(InputError, match="got merged ones"):
        vocabulary.check(replace(encoded[0], variable_rate=False))


def test_a_long_recording_comes_with_durations_too(merging: UnitBPE) -> None:
    wave = torch.cat(CLIPS)
    whole, long = merging.encode(wave[None])[0], encode_long(merging, wave)
    assert torch.equal(long.codes, whole.codes)
    assert long.durations is not None
    assert torch.equal(long.durations, whole.durations)
    assert long.variable_rate


def test_words_are_found_among_tokens(merging: UnitBPE, tmp_path: Path) -> None:
    text_tokenizer().save_pretrained(tmp_path / "text")
    units = merging.encode(CLIPS[0][None])[0]
    assert units.durations is not None
    ends = units.durations.cumsum(0)
    middle = int(ends[len(ends) // 2])
    words = (
        Word(word="one", start_s=0.0, end_s=middle / 50),
        Word(word="two", start_s=middle / 50, end_s=units.duration_s),
    )
    layout = build_layout("interleave-words", {}, 1)
    plan = ContentPlan(
        layout,
        num_codebooks=1,
        text_tokenizer=TextTokenizer.load(str(tmp_path / "text")),
        spans=SpansConfig(),
    )
    kept = plan.keep(stored("one", units, words))
    assert kept.words is not None
    first, second = kept.words
    assert (first.start, first.end) == (0, len(ends) // 2 + 1)
    assert (second.start, second.end) == (len(ends) // 2 + 1, len(ends))


def test_a_vocoder_for_the_units_inside_is_put_to_use(merging: UnitBPE, tmp_path: Path) -> None:
    CentroidMel.for_tokenizer(merging.base).save(tmp_path / "trained")
    vocoder = load_vocoder(tmp_path / "trained", merging)
    assert isinstance(vocoder, UnitBPEVocoder)
    assert vocoder.tokenizer_fingerprint == merging.fingerprint


def test_codebooks_of_unequal_size_are_streams_of_unequal_size(
    base_folder: Path, tmp_path: Path
) -> None:
    tokenizer = Prosody.fit(CLIPS, {"base": str(base_folder), "streams": ["energy"]}, seed=1)
    rows = [stored(str(at), tokenizer.encode(wave[None])[0]) for at, wave in enumerate(CLIPS)]
    write_store(tmp_path / "units", UnitFormat.of(tokenizer), rows)
    store = UnitStore.open(tmp_path / "units")
    assert store.codebook_sizes == (40, 16)
    layout = build_layout("parallel", {}, 2)
    vocabulary = Vocabulary(
        tokenizer_fingerprint=store.fingerprint,
        stream_sizes=layout.stream_sizes(store.codebook_sizes),
    )
    plan = ContentPlan(layout, num_codebooks=2, text_tokenizer=None, spans=SpansConfig())
    sequences = SequenceSet.of_split(store, layout, vocabulary, plan, "train", max_length=50)
    assert sequences.num_speech > len(CLIPS)  # cut into pieces of what fits
    assert 40 < max(sequences.lengths().tolist()) <= 50
    # Replaced units are of their own row's size.
    dropped = sequences._dropped(torch.zeros(2, 4000, dtype=torch.int32), 1.0, torch.Generator())
    assert dropped.amax(dim=1).tolist() == [39, 15]
