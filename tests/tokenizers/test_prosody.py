"""prosody adds rows that say how it is said, exactly streamed, on top of any tokenizer."""

from __future__ import annotations

import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speechlm.audio import load_audio, resample
from speechlm.data.human import human_clips
from speechlm.errors import (
    CheckpointError,
    ConfigError,
    CorpusError,
    InputError,
    PluginError,
)
from speechlm.testing import check_tokenizer, check_tokenizer_stream
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_tokenizers.prosody import Prosody
from speechlm_tokenizers.unit_bpe import UnitBPE

RATE = 16_000


@pytest.fixture(scope="module")
def prompts() -> list[Tensor]:
    return [load_audio(clip.path, RATE) for clip in list(human_clips("prompts").values())[:4]]


@pytest.fixture(scope="module")
def base_folder(prompts: list[Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prosody") / "base"
    LogMelKMeans.fit(prompts, {"num_units": 40, "iterations": 3}, seed=1).save(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(prompts: list[Tensor], base_folder: Path) -> Prosody:
    return Prosody.fit(prompts, {"base": str(base_folder)}, seed=1)


def row(tokenizer: Prosody, name: str, wave: Tensor) -> Tensor:
    number = tokenizer.base.num_codebooks + tokenizer.rows.index(name)
    return tokenizer.encode(wave[None])[0].codes[number]


def test_it_keeps_every_promise_of_a_tokenizer(tokenizer: Prosody, prompts: list[Tensor]) -> None:
    waves = [prompts[0][:20_000], prompts[1][:9_999], prompts[2][:321], prompts[3][:30_000]]
    assert len(tokenizer.encode(torch.cat(waves)[None])[0].codes.unique(dim=1)[0]) > 50
    check_tokenizer(tokenizer, waves)


@settings(max_examples=12, deadline=None)
@given(samples=st.integers(1, 30_000), chunk=st.integers(50, 12_000))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    tokenizer: Prosody, prompts: list[Tensor], samples: int, chunk: int
) -> None:
    check_tokenizer_stream(tokenizer, prompts[0][4000 : 4000 + samples], chunk)


def test_rows_are_the_bases_then_its_own_each_of_its_size(
    tokenizer: Prosody, prompts: list[Tensor]
) -> None:
    assert tokenizer.rows == ("f0", "energy", "rate")
    assert tokenizer.codebook_sizes == (40, 32, 16, 8)
    assert (tokenizer.num_codebooks, tokenizer.vocab_size) == (4, 40)
    codes = torch.cat([tokenizer.encode(wave[None])[0].codes for wave in prompts], dim=1)
    based = torch.cat([tokenizer.base.encode(wave[None])[0].codes for wave in prompts], dim=1)
    assert torch.equal(codes[:1], based)
    # All bins are used, and where there are values about as often as each other.
    for number, size in enumerate(tokenizer.codebook_sizes[1:3], start=1):
        counts = torch.bincount(codes[number], minlength=size)
        assert len(counts) == size
        assert counts[1:].max() - counts[1:].min() <= 2
    assert torch.bincount(codes[3]).gt(0).all()


def test_a_higher_voice_has_the_same_melody_less_its_mean(
    prompts: list[Tensor], base_folder: Path
) -> None:
    options = {"base": str(base_folder), "streams": ["f0"], "prior_s": 0.1}
    wave = torch.cat(prompts[:3])
    higher = resample(wave, 20_000, RATE)  # played a quarter faster: pitch 1.25 times as high
    steps = []
    for normalise in ("running", "none"):
        tokenizer = Prosody.fit(prompts[:3], {**options, "normalise": normalise}, seed=1)
        means = []
        for heard in (wave, higher):
            codes = row(tokenizer, "f0", heard)
            means.append(float(codes[codes > 0].double().mean()))
        steps.append(means[1] - means[0])
    running, none = steps
    assert abs(running) < 1.5, f"the mean bin moved by {running:.1f} though the mean is taken out"
    assert none > 6, f"the mean bin moved by {none:.1f} only though the voice is higher"


def test_a_rise_is_heard_as_higher_bins(tokenizer: Prosody) -> None:
    hz = torch.linspace(130, 260, 2 * RATE).double()
    phase = (hz / RATE).cumsum(0) * 2 * torch.pi
    wave = sum((phase * harmonic).sin() / harmonic for harmonic in range(1, 8)) * 0.1
    assert isinstance(wave, Tensor)
    codes = row(tokenizer, "f0", wave.float())[2:-2]
    assert (codes > 0).all()
    assert codes[-20:].double().mean() > codes[:20].double().mean() + 10


def test_loudness_of_the_whole_is_taken_out_and_silence_is_bin_0(
    tokenizer: Prosody, prompts: list[Tensor]
) -> None:
    wave = torch.cat([prompts[0], torch.zeros(RATE), prompts[1]])
    loud, quiet = row(tokenizer, "energy", wave), row(tokenizer, "energy", 0.5 * wave)
    pause = slice(len(prompts[0]) // 320 + 1, (len(prompts[0]) + RATE) // 320 - 1)
    assert not loud[pause].any()
    assert not quiet[pause].any()
    settled = 150
    assert (loud - quiet)[settled:].abs().double().mean() < 1.5


def test_all_silence_is_silent_and_unvoiced(tokenizer: Prosody) -> None:
    codes = tokenizer.encode(torch.zeros(1, RATE))[0].codes
    assert not codes[1:3].any()


def test_rate_counts_the_changes_of_the_last_second(
    tokenizer: Prosody, prompts: list[Tensor]
) -> None:
    units = tokenizer.base.encode(prompts[0][None])[0].codes[0].tolist()
    changes = [1, *(int(one != other) for one, other in pairwise(units))]
    counts = [sum(changes[max(0, at - 49) : at + 1]) for at in range(len(changes))]
    expected = tokenizer.quantize("rate", torch.tensor(counts).double())
    assert torch.equal(row(tokenizer, "rate", prompts[0]), expected)
    assert len(expected.unique()) > 3


def test_its_folder_needs_nothing_else(
    prompts: list[Tensor], base_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder, base)
    fitted = Prosody.fit(prompts[:2], {"base": str(base)}, seed=1)
    fitted.save(tmp_path / "saved")
    shutil.rmtree(base)
    loaded = Prosody.load(tmp_path / "saved")
    assert loaded.fingerprint == fitted.fingerprint
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    wave = prompts[0][None, :RATE]
    assert torch.equal(loaded.encode(wave)[0].codes, fitted.encode(wave)[0].codes)


def test_it_goes_on_a_base_of_several_codebooks(
    tokenizer: Prosody, prompts: list[Tensor], tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "base")
    options = {"base": str(tmp_path / "base"), "streams": ["energy"], "energy_bins": 5}
    double = Prosody.fit(prompts[:2], options, seed=1)
    assert double.codebook_sizes == (40, 32, 16, 8, 5)
    wave = prompts[0][:20_000]
    codes = double.encode(wave[None])[0].codes
    assert torch.equal(codes[:4], tokenizer.encode(wave[None])[0].codes)
    check_tokenizer_stream(double, wave, 1000)


def test_the_same_corpus_gives_the_same_tokenizer_and_an_option_another(
    tokenizer: Prosody, prompts: list[Tensor], base_folder: Path
) -> None:
    options: dict[str, Any] = {"base": str(base_folder)}
    assert Prosody.fit(prompts, options, seed=2).fingerprint == tokenizer.fingerprint
    other = Prosody.fit(prompts, {**options, "silence_db": 30}, seed=1)
    assert other.fingerprint != tokenizer.fingerprint


@pytest.fixture(scope="module")
def style_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random classifier in the format of the hub's."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForSequenceClassification,
    )

    torch.manual_seed(3)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(16, 16),
        conv_kernel=(10, 8),
        conv_stride=(160, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
        id2label={0: "neutral", 1: "happy", 2: "angry", 3: "sad"},
        label2id={"neutral": 0, "happy": 1, "angry": 2, "sad": 3},
    )
    model = Wav2Vec2ForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(50)  # so that windows differ
    folder = tmp_path_factory.mktemp("style") / "classifier"
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def test_style_is_the_label_of_each_window(
    prompts: list[Tensor], base_folder: Path, style_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    copied = tmp_path / "classifier"
    shutil.copytree(style_folder, copied)
    options = {
        "base": str(base_folder),
        "streams": [],
        "style_model": str(copied),
        "style_window_s": 0.25,
    }
    assert not Prosody.needs_corpus(options)
    tokenizer = Prosody.fit([], options, seed=1)
    shutil.rmtree(copied)
    assert tokenizer.rows == ("style",)
    assert tokenizer.style is not None
    assert tokenizer.style.labels == ("neutral", "happy", "angry", "sad")
    wave = torch.cat(prompts)[: 10 * RATE]
    model = AutoModelForAudioClassification.from_pretrained(style_folder)
    extractor = AutoFeatureExtractor.from_pretrained(style_folder)
    window, expected = 12 * 320, []  # a quarter of a second, in whole frames
    for start in range(0, len(wave), window):
        stretch = torch.zeros(window)
        piece = wave[start : start + window]
        stretch[: len(piece)] = piece
        inputs = extractor(stretch.numpy(), sampling_rate=RATE, return_tensors="pt")
        expected.append(int(model(**inputs).logits.argmax()))
    codes = row(tokenizer, "style", wave)
    assert torch.equal(codes, torch.tensor(expected).repeat_interleave(12)[: len(codes)])
    assert len(codes.unique()) > 1, "a random classifier that always says the same tests nothing"
    check_tokenizer(tokenizer, [wave[:RATE], wave[RATE : RATE + 5001]])


def test_a_classifier_kept_in_half_precision_works_in_single(
    prompts: list[Tensor], base_folder: Path, style_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    half = AutoModelForAudioClassification.from_pretrained(style_folder).half()
    half.save_pretrained(tmp_path / "half")
    AutoFeatureExtractor.from_pretrained(style_folder).save_pretrained(tmp_path / "half")
    options = {"base": str(base_folder), "streams": [], "style_model": str(tmp_path / "half")}
    tokenizer = Prosody.fit([], options, seed=1)
    tokenizer.save(tmp_path / "saved")
    loaded = Prosody.load(tmp_path / "saved")
    assert torch.equal(row(loaded, "style", prompts[0]), row(tokenizer, "style", prompts[0]))


def test_style_beside_all_other_rows(
    prompts: list[Tensor], base_folder: Path, style_folder: Path
) -> None:
    options = {"base": str(base_folder), "style_model": str(style_folder)}
    tokenizer = Prosody.fit(prompts[:2], options, seed=1)
    assert tokenizer.rows == ("f0", "energy", "rate", "style")
    assert tokenizer.codebook_sizes == (40, 32, 16, 8, 4)
    check_tokenizer_stream(tokenizer, prompts[0][:20_000], 777)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"base": None}, ConfigError, r"'prosody' goes on top .*tokenizer\.options\.base=FOLDER"),
        ({"base": "nowhere/at-all"}, CheckpointError, "holds no config.json"),
        ({"base": "logmel-kmeans"}, PluginError, "is fitted on a corpus before it is used"),
        ({"streams": ["f0", "f0"]}, ConfigError, "each at most once"),
        ({"streams": ["pitch"]}, ConfigError, r"tokenizer\.options\.streams.*'pitch'"),
        ({"streams": []}, ConfigError, "streams or a style_model, got neither"),
        ({"f0_bin": 9}, ConfigError, r"did you mean 'tokenizer\.options\.f0_bins'"),
        ({"f0_bins": 2}, ConfigError, "f0_bins and energy_bins of 3 or more"),
        ({"floor_hz": 600}, ConfigError, "floor_hz < ceiling_hz"),
        ({"context_s": 0.01}, ConfigError, "context_s of at least 0.050 s"),
        ({"block_s": 0}, ConfigError, "block_s above 0"),
        ({"style_model": "nowhere/at-all"}, CheckpointError, "is no audio classifier"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(
    prompts: list[Tensor],
    base_folder: Path,
    options: dict[str, Any],
    error: type[InputError],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as caught:
        Prosody.fit(prompts[:1], {"base": str(base_folder), **options}, seed=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stream", ["f0", "energy", "rate"])
@pytest.mark.parametrize("corpus", [[], [torch.zeros(RATE)]], ids=["empty", "silent"])
def test_a_corpus_of_silence_is_refused(
    base_folder: Path, stream: str, corpus: list[Tensor]
) -> None:
    options = {"base": str(base_folder), "streams": [stream]}
    if corpus and stream == "rate":
        return  # silence has units, and those change or not
    with pytest.raises(CorpusError, match=f"nothing to fit '{stream}' on: expected recordings"):
        Prosody.fit(corpus, options, seed=1)


def test_without_praat_it_says_what_to_install(
    prompts: list[Tensor], base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    with pytest.raises(PluginError, match=r"pip install 'speechlm\[prosody\]', or leave f0 out"):
        Prosody.fit(prompts[:1], {"base": str(base_folder)}, seed=1)
    without = {"base": str(base_folder), "streams": ["energy"]}
    assert Prosody.fit(prompts[:1], without, seed=1).rows == ("energy",)


def test_units_of_unequal_length_are_no_base(
    prompts: list[Tensor], base_folder: Path, tmp_path: Path
) -> None:
    merged = UnitBPE.fit(prompts[:1], {"base": str(base_folder), "vocab_size": 50}, seed=1)
    merged.save(tmp_path / "merged")
    with pytest.raises(ConfigError, match="last unequally long; choose another"):
        Prosody.fit(prompts[:1], {"base": str(tmp_path / "merged")}, seed=1)
