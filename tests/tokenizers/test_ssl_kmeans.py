"""ssl-kmeans keeps a tokenizer's promises, with encoders that would break them in a batch."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_encoders import DIM, save_encoder, some_waves
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError, CorpusError
from speechlm.testing import check_tokenizer, check_tokenizer_stream
from speechlm_tokenizers.ssl_kmeans import SSLKMeans
from speechlm_tokenizers.ssl_options import resolve
from speechlm_tokenizers.ssl_presets import PRESETS
from speechlm_tokenizers.ssl_quantizers import NO_UNIT, fill_gaps

CHECKED = ("hubert", "mhubert-25hz", "xls-r", "w2v-bert")
OPTIONS: dict[str, Any] = dict(num_units=128, iterations=8, window_s=0.8, context_s=0.12)
"""Windows that are short enough for small recordings to need several."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for name in CHECKED:
        save_encoder(name, folder / name)
    return folder


@pytest.fixture(scope="module")
def waves() -> list[Tensor]:
    return some_waves(16_000, 23_456, 9_000, 48_111, 30_000, 12_801)


def fit(folder: Path, waves: list[Tensor], name: str = "hubert", **options: Any) -> SSLKMeans:
    chosen = {"model": str(folder / name), "layer": 2, **OPTIONS, **options}
    return SSLKMeans.fit(waves, chosen, seed=1)


@pytest.fixture(scope="module")
def fitted(folder: Path, waves: list[Tensor]) -> Mapping[str, SSLKMeans]:
    return {name: fit(folder, waves, name) for name in CHECKED}


@pytest.mark.parametrize("name", CHECKED)
def test_it_keeps_every_promise_of_a_tokenizer(
    name: str, fitted: Mapping[str, SSLKMeans], waves: list[Tensor]
) -> None:
    tokenizer = fitted[name]
    units = torch.cat([tokenizer.encode(wave[None])[0].codes for wave in waves], dim=1)
    assert len(units.unique()) > 50
    few = [waves[3], waves[0][:7_777], waves[1][:333], waves[2][:1]]
    check_tokenizer(tokenizer, few)


@settings(max_examples=10, deadline=None)
@given(samples=st.integers(1, 40_000), chunk=st.integers(700, 20_000))
def test_a_stream_equals_the_whole_at_any_length_and_cut(
    fitted: Mapping[str, SSLKMeans], waves: list[Tensor], samples: int, chunk: int
) -> None:
    check_tokenizer_stream(fitted["hubert"], waves[3][:samples], chunk)


def test_a_stream_one_sample_at_a_time_equals_the_whole(
    fitted: Mapping[str, SSLKMeans], waves: list[Tensor]
) -> None:
    check_tokenizer_stream(fitted["mhubert-25hz"], waves[3][:14_000], 1)


def test_what_padding_does_to_others_it_does_not_do_here(
    fitted: Mapping[str, SSLKMeans], waves: list[Tensor], folder: Path
) -> None:
    """The usual way, a padded batch without a mask, changes the units of such an encoder."""
    from transformers import AutoModel

    tokenizer = fitted["hubert"]
    model = AutoModel.from_pretrained(folder / "hubert").eval()
    short = waves[2][:9_000]
    padded = torch.zeros(1, 30_000)
    padded[0, :9_000] = short
    with torch.no_grad():
        hidden = model(padded, output_hidden_states=True).hidden_states[2][0]
    alone = tokenizer.encode(short[None])[0].codes[0]
    theirs = torch.cdist(hidden[: len(alone)], tokenizer.unit_features).argmin(dim=1)
    batched = tokenizer.encode(padded, torch.tensor([9_000]))[0].codes[0]
    assert torch.equal(batched, alone)
    assert not torch.equal(theirs, alone)


@pytest.mark.parametrize("name", CHECKED)
def test_units_are_the_nearest_centroids_of_the_features(
    name: str, fitted: Mapping[str, SSLKMeans], waves: list[Tensor]
) -> None:
    tokenizer = fitted[name]
    features = tokenizer.features(waves[3])
    expected = torch.cdist(features.double(), tokenizer.unit_features.double()).argmin(dim=1)
    assert torch.equal(tokenizer.encode(waves[3][None])[0].codes[0], expected)
    assert tokenizer.unit_features.shape == (128, DIM)


@pytest.mark.parametrize("name", CHECKED)
def test_what_a_batch_may_round_to_another_unit_is_computed_alone(
    name: str, fitted: Mapping[str, SSLKMeans], waves: list[Tensor]
) -> None:
    """What a GPU does, on a CPU: with every centroid twice, all is a tie for rounding to tip."""
    for tokenizer in (fitted[name], _with_twins(fitted[name])):
        alone = [tokenizer.encode(wave[None])[0].codes for wave in waves]
        batched = tokenizer._in_batches(waves)
        for expected, found in zip(alone, batched, strict=True):
            assert torch.equal(expected, found)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKED)
def test_on_a_gpu_batches_change_nothing_and_few_units_differ(
    name: str, fitted: Mapping[str, SSLKMeans], waves: list[Tensor]
) -> None:
    tokenizer = SSLKMeans(fitted[name].config, fitted[name]._tensors()).to("cuda")
    check_tokenizer_stream(tokenizer, waves[3], 5_000)
    batched = tokenizer._in_batches(waves)
    same = []
    for wave, found in zip(waves, batched, strict=True):
        assert torch.equal(found, tokenizer._alone(wave))
        same.append((found == fitted[name].encode(wave[None])[0].codes).flatten())
    assert torch.cat(same).double().mean() > 0.99


def _with_twins(tokenizer: SSLKMeans) -> SSLKMeans:
    tensors = dict(tokenizer._tensors())
    centroids = tensors["quantizer.centroids"]
    twins = centroids * (1 + 1e-7 * torch.randn(centroids.shape))
    tensors["quantizer.centroids"] = torch.cat([centroids, twins])
    return SSLKMeans(tokenizer.config, tensors)


def test_a_recording_that_fits_into_a_window_is_computed_in_one_piece(
    folder: Path, fitted: Mapping[str, SSLKMeans], waves: list[Tensor]
) -> None:
    tokenizer = fitted["hubert"]
    window = round(0.8 * 16_000)
    encoder = tokenizer._encoder
    short, long = waves[3][: window - 1], waves[3][: 2 * window]
    assert torch.equal(tokenizer.features(short), encoder(short))
    assert tokenizer.seams(short) is None
    seams = tokenizer.seams(long)
    assert seams is not None
    whole = torch.cdist(encoder(long), tokenizer.unit_features).argmin(dim=1)
    same = (tokenizer.encode(long[None])[0].codes[0] == whole).double().mean()
    assert seams == pytest.approx(float(same), abs=0.011)
    assert tokenizer.features(long).shape == encoder(long).shape


def test_windows_bound_what_is_computed_at_once(
    fitted: Mapping[str, SSLKMeans], monkeypatch: pytest.MonkeyPatch, waves: list[Tensor]
) -> None:
    tokenizer = fitted["hubert"]
    heard: list[int] = []
    forward = type(tokenizer._encoder).forward

    def spy(self: Any, wave: Tensor) -> Tensor:
        heard.append(len(wave))
        return forward(self, wave)

    monkeypatch.setattr(type(tokenizer._encoder), "forward", spy)
    tokenizer.encode(torch.cat(waves)[None])
    assert len(heard) > 10
    assert max(heard) == round(0.8 * 16_000)


class Killed(Exception):
    pass


class Recordings:
    """Resumable, and killed on demand: see speechlm.protocols.ResumableWaves."""

    def __init__(self, waves: list[Tensor], work: Path, die_at: int | None = None) -> None:
        self.work, self.heard = work, 0
        self._waves, self._die_at = waves, die_at

    def __iter__(self) -> Iterator[Tensor]:
        return self.after(0)

    def after(self, count: int) -> Iterator[Tensor]:
        for place in range(count, len(self._waves)):
            if place == self._die_at:
                raise Killed
            self.heard += 1
            yield self._waves[place]


def test_a_killed_fit_goes_on_to_the_same_tokenizer(
    folder: Path, waves: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechlm_tokenizers.frame_store.SAVE_EVERY_S", 0.0)
    options = {"model": str(folder / "hubert"), "layer": 1, **OPTIONS}
    options |= {"num_units": 40, "fit_frames": 300}
    expected = SSLKMeans.fit(waves, options, seed=5).fingerprint
    work = tmp_path / "work"
    for die_at in (2, 5):
        with pytest.raises(Killed):
            SSLKMeans.fit(Recordings(waves, work, die_at), options, seed=5)

    def killed(number: int) -> Any:
        from speechlm_tokenizers import kmeans

        save = kmeans._save_pass

        def save_pass(folder: Path | None, done: int, centroids: Tensor) -> None:
            save(folder, done, centroids)
            if done == number:
                raise Killed

        return save_pass

    for number in (0, 2):
        with monkeypatch.context() as patched:
            patched.setattr("speechlm_tokenizers.kmeans._save_pass", killed(number))
            with pytest.raises(Killed):
                SSLKMeans.fit(Recordings(waves, work), options, seed=5)
    last, other = Recordings(waves, work), Recordings(waves, work)
    assert SSLKMeans.fit(last, options, seed=5).fingerprint == expected
    assert last.heard == 0, "what was heard before the kill is not heard again"
    SSLKMeans.fit(other, {**options, "layer": 2}, seed=5)
    assert other.heard == len(waves), "what another encoder heard is of no use"
    assert SSLKMeans.fit(waves, options, seed=6).fingerprint != expected


@pytest.mark.parametrize("format", ["safetensors", "npy", "pt", "sklearn"])
def test_a_fitted_kmeans_is_read_and_no_corpus_with_it(
    format: str, folder: Path, fitted: Mapping[str, SSLKMeans], tmp_path: Path, waves: list[Tensor]
) -> None:
    centroids = fitted["hubert"].unit_features
    path = tmp_path / "km.bin"
    if format == "safetensors":
        save_file({"centroids": centroids.contiguous()}, path)
    elif format == "npy":
        buffer = io.BytesIO()
        np.save(buffer, centroids.numpy())
        path.write_bytes(buffer.getvalue())
    elif format == "pt":
        torch.save(centroids, path)
    else:
        joblib = pytest.importorskip("joblib")
        cluster = pytest.importorskip("sklearn.cluster")
        kmeans = cluster.KMeans(128, n_init=1, max_iter=1).fit(torch.randn(200, DIM).numpy())
        kmeans.cluster_centers_ = centroids.numpy()
        joblib.dump(kmeans, path)
    options: dict[str, Any] = {"kmeans": str(path), "num_units": 128}
    assert not SSLKMeans.needs_corpus(options)
    if format == "sklearn":
        with pytest.raises(CheckpointError, match=r"is a pickle, .* give --trust"):
            fit(folder, [], **options)
        options["trust"] = True
    read = fit(folder, [], **options)
    assert read.fingerprint == fitted["hubert"].fingerprint
    assert torch.equal(
        read.encode(waves[0][None])[0].codes, fitted["hubert"].encode(waves[0][None])[0].codes
    )


def test_a_kmeans_of_another_dimension_or_size_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "km.safetensors"
    save_file({"centroids": torch.randn(60, 48)}, path)
    with pytest.raises(CheckpointError, match=r"is of 48 features, but the encoder gives 32"):
        fit(folder, [], kmeans=str(path), num_units=None)
    save_file({"centroids": torch.randn(60, DIM)}, path)
    with pytest.raises(CheckpointError, match=r"holds 60 units, but .*num_units says 128"):
        fit(folder, [], kmeans=str(path))
    with pytest.raises(CheckpointError, match=r"has the SHA-256 .*options.kmeans_sha256"):
        fit(folder, [], kmeans=str(path), num_units=None, kmeans_sha256="0123456789")


def test_a_corpus_too_small_for_its_units_is_refused(folder: Path, waves: list[Tensor]) -> None:
    with pytest.raises(
        CorpusError, match=r"at least 5000 frames \(100 s\) .* got 50 \(1 s\); give"
    ):
        fit(folder, waves[:1], num_units=5000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs an encoder: .* got no model"),
        ({"model": "a/b"}, "needs an encoder: .* got no layer"),
        ({"model": "a/b", "layr": 2}, "unknown key 'tokenizer.options.layr'; did you mean"),
        ({"model": "a/b", "layer": 1, "num_units": 1}, "num_units must be at least 2, got 1"),
        ({"model": "a/b", "layer": 1, "fit_frames": 9}, r"fit_frames \(9\) must be at least"),
        ({"preset": "gslm"}, "expected one of gslm-km50, .*, got 'gslm'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SSLKMeans.fit([], options, seed=1)


def test_windows_must_be_longer_than_what_they_overlap_by(
    folder: Path, waves: list[Tensor]
) -> None:
    with pytest.raises(ConfigError, match=r"window_s \(0.5\) must be more than twice context_s"):
        fit(folder, waves[:1], window_s=0.5, context_s=0.26, num_units=20)


def test_a_layer_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected tokenizer.options.layer within 0\.\.3, got 9"):
        fit(folder, [], layer=9)


def test_every_preset_is_whole() -> None:
    for name, preset in PRESETS.items():
        assert preset.licence
        assert "arXiv:" in preset.paper
        assert preset.sha256 is None or len(bytes.fromhex(preset.sha256)) == 32
        assert not SSLKMeans.needs_corpus({"preset": name})
        if preset.kmeans is None:
            with pytest.raises(CheckpointError, match=r"those who ask, see https://github\.com/"):
                resolve({"preset": name})
            options = resolve({"preset": name, "kmeans": "given.pt"})
            assert (options.kmeans, options.kmeans_sha256) == ("given.pt", None)
        else:
            options = resolve({"preset": name})
            assert (options.kmeans, options.kmeans_sha256) == (preset.kmeans, preset.sha256)
        assert (options.model, options.layer) == (preset.model, preset.layer)
        assert options.normalize is preset.normalize
        assert resolve({"preset": name, "layer": 3, "kmeans": "x"}).layer == 3


def test_a_feed_forward_quantizer_fills_what_says_nothing(
    folder: Path, fitted: Mapping[str, SSLKMeans], waves: list[Tensor], tmp_path: Path
) -> None:
    """Spirit LM's: three layers, and a class more than there are units, which is no unit."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(DIM, 40), torch.nn.LeakyReLU(), torch.nn.Linear(40, 44),
        torch.nn.LeakyReLU(), torch.nn.Linear(44, 61),
    )  # fmt: skip
    path = tmp_path / "L11_quantizer_60.pt"
    settings = {"vocab_size": 60, "dim": DIM, "upstream_dim": 77}
    features = fitted["hubert"].features(waves[3])
    with torch.no_grad():
        for layer in network[::2]:
            layer.weight.mul_(8)
        network[0].bias.copy_(-(features @ network[0].weight.T).mean(dim=0))
        scores = network(features)
        # Two frames of five say nothing.
        network[4].bias[60] += (scores[:, :60].amax(dim=1) - scores[:, 60]).quantile(0.4)
    torch.save({"model_cfg": settings, "model_weight": network.state_dict()}, path)
    tokenizer = fit(folder, [], kmeans=str(path), num_units=60)
    assert tokenizer.vocab_size == 60
    assert tokenizer.unit_features.shape == (60, 44)
    with torch.no_grad():
        classes = network(features).argmax(dim=1).tolist()
    assert 0.3 < classes.count(60) / len(classes) < 0.5
    assert len(set(classes)) > 15
    expected, last = [], 0
    for unit in classes:
        last = last if unit == 60 else unit
        expected.append(last)
    assert tokenizer.encode(waves[3][None])[0].codes[0].tolist() == expected
    check_tokenizer(tokenizer, [waves[3], waves[2][:5_000], waves[1][:50]])
    for alone, batched in zip(waves, tokenizer._in_batches(waves), strict=True):
        assert torch.equal(tokenizer.encode(alone[None])[0].codes, batched)


def test_gaps_take_the_unit_before_them() -> None:
    codes = torch.tensor([NO_UNIT, 4, NO_UNIT, NO_UNIT, 0, NO_UNIT])
    assert fill_gaps(codes, before=7).tolist() == [7, 4, 4, 4, 0, 0]
    assert fill_gaps(codes[:0], before=7).tolist() == []


def test_changed_weights_are_refused(
    fitted: Mapping[str, SSLKMeans], folder: Path, waves: list[Tensor], tmp_path: Path
) -> None:
    fitted["hubert"].save(tmp_path / "one")
    fit(folder, waves, layer=1).save(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").replace(tmp_path / "one" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"was saved as .* but its content is"):
        SSLKMeans.load(tmp_path / "one")
