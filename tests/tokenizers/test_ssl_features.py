"""Features are those of transformers, of any layer, and cost no more than the layers up to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_encoders import FAMILIES, NUM_LAYERS, save_encoder, small_encoder, some_waves
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError
from speechlm.files import read_json, write_json
from speechlm_tokenizers.phone_ctc_model import Encoder as PhoneEncoder
from speechlm_tokenizers.phone_ctc_model import EncoderShape, write_encoder
from speechlm_tokenizers.ssl_checkpoint import load_encoder
from speechlm_tokenizers.ssl_features import Encoder

LOG_MEL = [name for name in FAMILIES if name.startswith("w2v-bert")]
STABLE = ("hubert-large", "xls-r", "wavlm-large")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for name in FAMILIES:
        save_encoder(name, folder / name)
    return folder


def reference(name: str, encoder: Encoder, wave: Tensor, layer: int) -> Tensor:
    """Features by transformers, of what our encoder reads."""
    model = small_encoder(name)
    with torch.no_grad():
        output = model(encoder.inputs(wave)[None], output_hidden_states=True)
    if layer == NUM_LAYERS and name in STABLE:
        # Normalized there or not, by the version; what comes out of it always is.
        return output.last_hidden_state[0]
    return output.hidden_states[layer][0]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_of_every_family_is_transformers(name: str, folder: Path) -> None:
    (wave,) = some_waves(9_111)
    for layer in range(NUM_LAYERS + 1):
        encoder = load_encoder(str(folder / name), layer)
        features = encoder(wave)
        if layer == NUM_LAYERS and name in STABLE:
            with torch.no_grad():
                features = small_encoder(name).encoder.layer_norm(features)
        expected = reference(name, encoder, wave, layer)
        assert expected.std() > 0.1
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_there_is_a_frame_for_every_hop_that_has_begun(name: str, folder: Path) -> None:
    encoder = load_encoder(str(folder / name), 1)
    hop = encoder.config.hop_length
    assert hop == (640 if name == "mhubert-25hz" else 320)
    for length in (1, 37, hop - 1, hop, hop + 1, 7 * hop, 7 * hop + 399):
        features = encoder(torch.randn(length))
        assert features.shape == (-(-length // hop), encoder.config.dim)
        assert torch.isfinite(features).all()


def test_layers_beyond_the_chosen_one_are_not_there(folder: Path) -> None:
    names = load_encoder(str(folder / "hubert"), 1).tensors()
    assert any(name.startswith("encoder.layers.0.") for name in names)
    assert not any(name.startswith("encoder.layers.1.") for name in names)
    whole = load_encoder(str(folder / "hubert"), NUM_LAYERS).tensors()
    layer = {name: tensor for name, tensor in whole.items() if ".layers.0." in name}
    assert len(whole) - len(names) == (NUM_LAYERS - 1) * len(layer)


@pytest.mark.parametrize("name", LOG_MEL)
def test_log_mels_are_those_of_transformers_extractor(name: str, folder: Path) -> None:
    from transformers import SeamlessM4TFeatureExtractor

    encoder = load_encoder(str(folder / name), 0)
    # So many samples are whole spectra, and an even number of them.
    (wave,) = some_waves(9 * 320 + 240)
    extracted = SeamlessM4TFeatureExtractor()(
        wave.numpy(), sampling_rate=16_000, return_tensors="pt"
    ).input_features[0]
    found = encoder.inputs(wave)
    assert found.shape == (len(extracted) + 1, 160)
    torch.testing.assert_close(found[:-1], extracted, atol=2e-3, rtol=0)
    assert not found[-1].any(), "what a recording does not have is the mean of each band"


def test_recordings_are_normalized_where_the_checkpoint_says_so(
    folder: Path, tmp_path: Path
) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    (wave,) = some_waves(5_000)
    wave = 3 * wave + 0.5
    save_encoder("wav2vec2", tmp_path)
    for says in (True, False):
        Wav2Vec2FeatureExtractor(do_normalize=says).save_pretrained(tmp_path)
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
        expected = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
        encoder = load_encoder(str(tmp_path), 1)
        torch.testing.assert_close(encoder.inputs(wave)[:5_000], expected[0], atol=1e-4, rtol=0)
        assert not encoder.inputs(wave)[5_000:].any()
        other = load_encoder(str(tmp_path), 1, normalize=not says)
        assert other.config.normalize is not says
    assert load_encoder(str(folder / "wav2vec2"), 1).config.normalize is False


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_differs_by_rounding_alone(name: str, folder: Path) -> None:
    """Above all where the first convolution is normalized over time."""
    encoder = load_encoder(str(folder / name), 2)
    waves = some_waves(8_000, 3_000, 37, 12_345)
    for wave, features in zip(waves, encoder.batch(waves), strict=True):
        torch.testing.assert_close(features, encoder(wave), atol=1e-5, rtol=0)
    assert encoder.can_batch == (name not in ("mhubert-147", "data2vec"))


@pytest.mark.parametrize("weight_norm", ["old", "new"])
def test_pickled_state_dicts_and_heads_are_read(
    weight_norm: str, folder: Path, tmp_path: Path
) -> None:
    """As the checkpoints of 2021 are: a pickle, magnitude and direction, tensors of a head."""
    weights = small_encoder("hubert").state_dict()
    if weight_norm == "old":
        names = {"parametrizations.weight.original0": "weight_g"}
        names["parametrizations.weight.original1"] = "weight_v"
        for new, old in names.items():
            weights[f"encoder.pos_conv_embed.conv.{old}"] = weights.pop(
                f"encoder.pos_conv_embed.conv.{new}"
            )
    headed = {f"hubert.{name}": tensor for name, tensor in weights.items()}
    headed["lm_head.weight"] = torch.randn(30, 32)
    torch.save(headed, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((folder / "hubert" / "config.json").read_bytes())
    (wave,) = some_waves(5_000)
    expected = load_encoder(str(folder / "hubert"), 2)(wave)
    torch.testing.assert_close(load_encoder(str(tmp_path), 2)(wave), expected)


def test_an_encoder_that_was_trained_here_is_read(tmp_path: Path) -> None:
    """What ``phone-ctc`` writes: 40 bands, and a conformer of its own making."""
    torch.manual_seed(0)
    shape = EncoderShape(num_mels=40, num_layers=2, model_dim=32, num_heads=4, ffn_dim=48)
    trained = PhoneEncoder(shape).eval()
    write_encoder(tmp_path / "encoder", shape, trained.state_dict())
    encoder = load_encoder(str(tmp_path / "encoder"), 2)
    assert encoder.config.hop_length == 320
    (wave,) = some_waves(9_111)
    inputs = encoder.inputs(wave)
    assert inputs.shape == (29, 80)
    with torch.no_grad():
        expected = trained.run(trained.project(inputs[None]), 0, 2)[0]
    torch.testing.assert_close(encoder(wave), expected, atol=1e-4, rtol=0)


def test_a_layer_that_is_not_there_is_refused(folder: Path) -> None:
    for layer in (-1, 4):
        with pytest.raises(ConfigError, match=rf"has 3 layers: .* within 0\.\.3, got {layer}"):
            load_encoder(str(folder / "hubert"), layer)


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere holds no config.json: expected a folder"):
        load_encoder("nowhere", 1)
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    with pytest.raises(CheckpointError, match=r"type 'bert'; expected one of hubert, wav2vec2"):
        load_encoder(str(tmp_path), 1)
    write_json(tmp_path / "config.json", {"model_type": "hubert", "conv_dim": [3], "layer": []})
    with pytest.raises(CheckpointError, match=r"holds a value that cannot be used"):
        load_encoder(str(tmp_path), 1)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot be read: .*; download it again"):
        load_encoder(str(tmp_path), 1)


def test_a_partial_checkpoint_is_refused(tmp_path: Path) -> None:
    save_encoder("hubert", tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read .*download or"):
        load_encoder(str(tmp_path), 1)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model\*.safetensors nor pytorch_mo"):
        load_encoder(str(tmp_path), 1)
    torch.save({"encoder.layer_norm.weight": torch.ones(32)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"the encoder's tensor .* is missing: the checkpo"):
        load_encoder(str(tmp_path), 1)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04truncated")
    with pytest.raises(CheckpointError, match=r"truncated or holds more than tensors|cannot be re"):
        load_encoder(str(tmp_path), 1)


def test_mixed_up_files_are_refused(tmp_path: Path) -> None:
    save_encoder("hubert", tmp_path)
    settings = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", {**settings, "intermediate_size": 65})
    with pytest.raises(CheckpointError, match=r"is \[64, 32\], but its configuration says \[65"):
        load_encoder(str(tmp_path), 1)


def test_another_sum_than_the_files_is_refused(tmp_path: Path) -> None:
    import hashlib

    save_encoder("hubert", tmp_path)
    right = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    load_encoder(str(tmp_path), 1, sha256=right[:12].upper())
    with pytest.raises(CheckpointError, match=r"has the SHA-256 .*, expected 00000000 "):
        load_encoder(str(tmp_path), 1, sha256="0" * 8)
    with pytest.raises(ConfigError, match="8 to 64 hexadecimal digits, got 'abc'"):
        load_encoder(str(tmp_path), 1, sha256="abc")
