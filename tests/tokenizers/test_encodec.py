"""EnCodec's units are those of the package at any length, and a stream gives the very same."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import (
    encodec_file,
    encodec_folder,
    published_encodec,
    small_dac,
    small_encodec,
    speechlike,
    unequal,
)
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError
from speechlm.testing import check_tokenizer, check_tokenizer_stream
from speechlm_tokenizers.encodec import Encodec
from speechlm_tokenizers.encodec_loading import _infer, _rename
from speechlm_tokenizers.encodec_model import Architecture

SECOND = 24_000


@cache
def model(segments: bool) -> Any:
    return small_encodec(segments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encodec")


@pytest.fixture(scope="module")
def causal(folder: Path) -> Encodec:
    return fit(encodec_file(model(False), folder / "causal.th"))


@pytest.fixture(scope="module")
def segments(folder: Path) -> Encodec:
    return fit(encodec_file(model(True), folder / "segments.th"))


def fit(path: Path | str, **options: Any) -> Encodec:
    return Encodec.fit([], {"model": str(path), "num_codebooks": 3, **options}, seed=0)


def of_package(segments: bool, wave: Tensor) -> Tensor:
    """The package's codes, int64 [3, F]."""
    with torch.no_grad():
        frames = model(segments).encode(wave.expand(1, 1 + segments, -1))
    return torch.cat([codes for codes, _ in frames], dim=2)[0, :3]


def test_the_causal_one_keeps_every_promise_of_a_tokenizer(causal: Encodec) -> None:
    check_tokenizer(causal, unequal(5000, 81, 720, 1))


def test_the_one_of_segments_keeps_every_promise_of_a_tokenizer(segments: Encodec) -> None:
    check_tokenizer(segments, unequal(100_000, 81, 48_000, 1))


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(1, 6000), chunk=st.integers(1, 6000))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    causal: Encodec, samples: int, chunk: int
) -> None:
    check_tokenizer_stream(causal, speechlike(samples), chunk)


@pytest.mark.parametrize("chunk", [1, 79, 80, 81, SECOND])
def test_a_stream_equals_the_whole_cut_from_a_sample_to_a_second(
    causal: Encodec, chunk: int
) -> None:
    wave = speechlike(SECOND + 30)
    check_tokenizer_stream(causal, wave, chunk)
    assert min(row.unique().numel() for row in causal.encode(wave[None])[0].codes) > 50


def test_a_buffer_may_be_filled_again_once_it_was_pushed(causal: Encodec) -> None:
    wave = speechlike(2000)
    stream, buffer, parts = causal.stream(), torch.empty(50), []
    for piece in wave.split(50):
        parts.append(stream.push(buffer.copy_(piece)))
    assert torch.equal(
        torch.cat([*parts, stream.finish()], dim=1), causal.encode(wave[None])[0].codes
    )


def test_a_recording_of_no_samples_has_no_units(causal: Encodec, segments: Encodec) -> None:
    assert causal.encode(torch.zeros(1, 0))[0].codes.shape == (3, 0)
    assert segments.encode(torch.zeros(1, 0))[0].codes.shape == (4, 0)


@pytest.mark.parametrize("samples", [1, 79, 80, 81, 560, 639, 640, 641, 16_000, 16_017])
def test_units_are_the_packages_at_any_length(causal: Encodec, samples: int) -> None:
    wave = speechlike(samples, seed=1)
    assert torch.equal(causal.encode(wave[None])[0].codes, of_package(False, wave))


def test_more_than_fifty_units_of_each_codebook_are_in_play(causal: Encodec) -> None:
    codes = causal.encode(speechlike(SECOND)[None])[0].codes
    assert torch.equal(codes, of_package(False, speechlike(SECOND)))
    assert min(row.unique().numel() for row in codes) > 50


def test_the_size_of_blocks_is_a_matter_of_speed(folder: Path, causal: Encodec) -> None:
    wave = speechlike(9000)
    for block in (1, 40):
        other = fit(folder / "causal.th", block_frames=block)
        assert other.fingerprint != causal.fingerprint
        check_tokenizer_stream(other, wave, 500)
        assert torch.equal(other.encode(wave[None])[0].codes, of_package(False, wave))


@pytest.mark.parametrize("samples", [1, 4000, 48_000, 100_033])
def test_segments_have_the_packages_units_and_their_loudness(
    segments: Encodec, samples: int
) -> None:
    wave = speechlike(samples, seed=2)
    codes = segments.encode(wave[None])[0].codes
    assert codes.shape == (4, -(-samples // 80))
    assert torch.equal(codes[:3], of_package(True, wave))
    if samples > 48_000:
        assert min(row.unique().numel() for row in codes[:3]) > 50
    for segment, row in zip(wave.split(48_000), codes[3].split(600), strict=True):
        assert row.unique().numel() == 1
        decibels = -90 + 96 * int(row[0]) / 127
        assert abs(decibels - 20 * float(segment.square().mean().sqrt().log10())) <= 48 / 127 + 0.1


def test_silence_is_a_segment_of_the_lowest_loudness(segments: Encodec) -> None:
    assert segments.encode(torch.zeros(1, 500))[0].codes[3].unique().tolist() == [0]


@pytest.mark.parametrize("of_segments", [False, True])
def test_the_same_weights_give_the_same_tokenizer_from_either_source(
    folder: Path, causal: Encodec, segments: Encodec, of_segments: bool
) -> None:
    saved = encodec_folder(model(of_segments), folder / f"transformers-{of_segments}")
    assert fit(saved).fingerprint == (segments if of_segments else causal).fingerprint


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encodec_model_24khz", Architecture()),
        (
            "encodec_model_48khz",
            Architecture(
                sample_rate=48_000,
                channels=2,
                causal=False,
                group_norm=True,
                segment=48_000,
                normalize=True,
            ),
        ),
    ],
)
def test_the_published_sizes_are_read_off_the_packages_weights(
    name: str, expected: Architecture
) -> None:
    assert _infer(_rename(published_encodec(name)), Path("x.th")) == expected


@pytest.mark.parametrize(
    ("options", "codebooks"),
    [
        ({"num_codebooks": 1}, 1),
        ({"num_codebooks": 4}, 4),
        ({"bandwidth_kbps": 4.2}, 2),
        ({"bandwidth_kbps": 6.0}, 2),
        ({"bandwidth_kbps": 8.4}, 4),
        ({}, 2),
    ],
)
def test_codebooks_are_chosen_by_number_or_bandwidth(
    folder: Path, causal: Encodec, options: dict[str, Any], codebooks: int
) -> None:
    """A codebook of 7 bits at 300 Hz takes 2.1 kbps."""
    path = encodec_file(model(False), folder / "causal.th")
    tokenizer = Encodec.fit([], {"model": str(path), **options}, seed=0)
    assert tokenizer.num_codebooks == codebooks
    assert tokenizer.unit_features.shape == (128, 16)
    wave = speechlike(3000)[None]
    shared = min(codebooks, 3)
    codes = tokenizer.encode(wave)[0].codes
    assert torch.equal(codes[:shared], causal.encode(wave)[0].codes[:shared])


def test_no_corpus_is_needed() -> None:
    assert Encodec.needs_corpus({}) is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codebooks": 5}, "num_codebooks: expected 1 to 4, which the model has, got 5"),
        ({"num_codebooks": 0}, "num_codebooks: expected 1 to 4, which the model has, got 0"),
        (
            {"num_codebooks": None, "bandwidth_kbps": 24.0},
            r"bandwidth_kbps: expected 2\.1 to 8\.4, 2\.1 for each of the model's 4 codebooks",
        ),
        ({"bandwidth_kbps": 6.0}, "expected num_codebooks or bandwidth_kbps, got both"),
        ({"block_frames": 0}, "block_frames must be at least 1, got 0"),
        ({"codebooks": 4}, "unknown key 'tokenizer.options.codebooks'; did you mean"),
        ({"sha256": "sha"}, "sha256: expected 8 to 64 hexadecimal digits, got 'sha'"),
    ],
)
def test_a_wrong_option_is_named(
    folder: Path, causal: Encodec, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(folder / "causal.th", **options)


def test_a_checkpoint_must_have_the_sha256_that_was_given_or_that_its_name_says(
    folder: Path,
) -> None:
    path = encodec_file(model(False), folder / "checked.th")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    named = path.rename(folder / f"encodec_24khz-{digest[:8]}.th")
    assert fit(named, sha256=digest).fingerprint == fit(named).fingerprint
    with pytest.raises(
        CheckpointError, match=r"has the SHA-256 .* expected 0000000000 \(.*sha256\): it is"
    ):
        fit(named, sha256="0" * 10)
    wrong = named.rename(folder / "encodec_24khz-d7cc33bc.th")
    with pytest.raises(CheckpointError, match=r"has the SHA-256 .* expected d7cc33bc"):
        fit(wrong)
    wrong.unlink()


def test_a_published_model_is_looked_for_where_torch_keeps_such(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def offline(url: str, *_: Any, **__: Any) -> None:
        asked.append(url)
        raise OSError("no way there")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(CheckpointError, match=r"encodec_24khz-d7cc33bc\.th cannot be downloaded"):
        fit("encodec_24khz")
    assert asked[0].endswith("/encodec/v0/encodec_24khz-d7cc33bc.th")
    kept = folder / "hub" / "checkpoints" / "encodec_48khz-7e698e3e.th"
    encodec_file(model(True), kept)
    with pytest.raises(CheckpointError, match="expected 7e698e3e"):
        fit("encodec_48khz")


def test_what_is_no_encodec_is_said_in_a_line(folder: Path) -> None:
    whole = encodec_file(model(False), folder / "whole.th").read_bytes()
    cut = folder / "cut.th"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.th .*download it again"):
        fit(cut)
    with pytest.raises(CheckpointError, match=r"none\.th: no such file"):
        fit(folder / "none.th")
    with pytest.raises(CheckpointError, match=r"holds no config\.json: expected a folder"):
        fit(folder / "nowhere" / "at" / "all")
    torch.save({"weight": torch.zeros(1)}, folder / "other.th")
    with pytest.raises(CheckpointError, match="is no state dict of an EnCodec"):
        fit(folder / "other.th")
    torch.save({"weight": Path("x")}, folder / "objects.th")
    with pytest.raises(CheckpointError, match="holds more than tensors, and is not unpickled"):
        fit(folder / "objects.th")
    state = model(False).state_dict()
    del state["decoder.model.4.block.1.conv.conv.weight_g"]
    torch.save(state, folder / "partial.th")
    with pytest.raises(CheckpointError, match=r"has no weight_g beside it: .* partial"):
        fit(folder / "partial.th")
    state = model(False).state_dict()
    state["decoder.model.1.lstm.weight_hh_l0"] = torch.zeros(3, 3)
    torch.save(state, folder / "shape.th")
    with pytest.raises(CheckpointError, match=r"weight_hh_l0 is \[3, 3\], expected \[128, 32\]"):
        fit(folder / "shape.th")


def test_a_model_of_another_kind_is_refused(folder: Path) -> None:
    small_dac().save_pretrained(folder / "dac")
    with pytest.raises(CheckpointError, match="holds a model of type 'dac', expected 'encodec'"):
        fit(folder / "dac")
    neither = encodec_folder(model(False), folder / "neither")
    config = (neither / "config.json").read_text()
    changed = config.replace('"use_causal_conv": true', '"use_causal_conv": false')
    (neither / "config.json").write_text(
        changed if changed != config else config.replace("{", '{"use_causal_conv": false,', 1)
    )
    with pytest.raises(ConfigError, match="one that is neither, such as encodec_32khz, is not"):
        fit(neither)
    (neither / "model.safetensors").unlink()
    (neither / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor pytorch"):
        fit(neither)
