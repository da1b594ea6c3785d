"""Encoders that fairseq2 reads give fairseq2's features, and need it no more."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_encoders import some_waves
from torch import Tensor

from speechlm.errors import CheckpointError, ConfigError
from speechlm_tokenizers.ssl_checkpoint import load_encoder
from speechlm_tokenizers.ssl_fairseq2 import CARDS
from speechlm_tokenizers.ssl_kmeans import SSLKMeans

pytestmark = pytest.mark.train
if importlib.util.find_spec("fairseq2") is None:
    pytest.skip("fairseq2 is not installed", allow_module_level=True)

ENCODER = dict(
    model_dim=32, num_encoder_layers=3, num_encoder_attn_heads=4, ffn_inner_dim=64, layer_drop_p=0.0
)
WAVE: dict[str, Any] = dict(
    **ENCODER,
    feature_extractor_layer_descs=[[24, 10, 5], [24, 4, 4], [24, 4, 4], [24, 3, 2], [24, 2, 2]],
    feature_dim=24,
    pos_conv_kernel_size=16,
    num_pos_conv_groups=4,
)
MODELS: dict[str, dict[str, Any]] = {
    "wav2vec2": {
        "model_family": "wav2vec2",
        "model_arch": "base",
        "model_config": {"encoder_config": {"_set_": WAVE}},
    },
    "xls-r": {
        "model_family": "wav2vec2",
        "model_arch": "large_lv60k",
        "model_config": {"encoder_config": {"_set_": WAVE}},
    },
    "unprojected": {
        "model_family": "wav2vec2",
        "model_arch": "base",
        "model_config": {
            "encoder_config": {
                "_set_": {
                    **WAVE,
                    "feature_dim": 32,
                    "feature_extractor_layer_descs": [[32, 10, 5], [32, 8, 8], [32, 8, 8]],
                }
            }
        },
    },
    "w2v-bert": {
        "model_family": "w2vbert",
        "model_arch": "300m",
        "model_config": {
            "_set_": {"num_bert_encoder_layers": 2},
            "w2v2_config": {
                "encoder_config": {"_set_": {**ENCODER, "depthwise_conv_kernel_size": 7}}
            },
        },
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A card of each, beside its checkpoint, and the model of fairseq2 itself."""
    from speechlm.training.running import import_fairseq2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_fairseq2()
        import fairseq2.recipe  # noqa: F401
        from fairseq2.assets import AssetCard
        from fairseq2.models.w2vbert import get_w2vbert_model_hub
        from fairseq2.models.wav2vec2 import get_wav2vec2_model_hub

        hubs: dict[str, Any] = {
            "wav2vec2": get_wav2vec2_model_hub(),
            "w2vbert": get_w2vbert_model_hub(),
        }
        folder = tmp_path_factory.mktemp("cards")
        made = {}
        for name, values in MODELS.items():
            hub = hubs[values["model_family"]]
            config = hub.get_model_config(AssetCard(name, values))
            torch.manual_seed(3)
            model = hub.create_new_model(config, device=torch.device("cpu")).eval()
            torch.save({"model": model.state_dict()}, folder / f"{name}.pt")
            card = {"name": name, **values, "checkpoint": f"{name}.pt"}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(card))
            made[name] = (folder / f"{name}.yaml", getattr(model, "w2v2_model", model))
    return made


@torch.inference_mode()
def features_by_fairseq2(model: Any, inputs: Tensor) -> list[Tensor]:
    """What enters its first layer and what leaves each."""
    from fairseq2.nn import BatchLayout

    hidden, layout = model.encoder_frontend(inputs, BatchLayout.of(inputs))
    found = [hidden]

    def keep(index: int, output: Tensor, layout: Any, count: int) -> bool:
        found.append(output)
        return True

    with model.encoder.register_layer_hook(keep):
        model.encoder(hidden, layout)
    return [each[0] for each in found]


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_fairseq2s(name: str, models: dict[str, tuple[Path, Any]]) -> None:
    path, model = models[name]
    (wave,) = some_waves(9_111)
    for layer in range(4):
        encoder = load_encoder(f"fairseq2:{path}", layer)
        inputs = encoder.inputs(wave)
        if name == "w2v-bert":
            inputs = inputs.reshape(-1, 80)
        expected = features_by_fairseq2(model, inputs[None])[layer]
        assert expected.std() > 0.1
        torch.testing.assert_close(encoder(wave), expected, atol=1e-4, rtol=0)
        assert encoder.config.normalize == (name in ("xls-r", "w2v-bert"))


def test_log_mels_are_fairseq2s(models: dict[str, tuple[Path, Any]]) -> None:
    from fairseq2.data.audio import WaveformToFbankConverter

    encoder = load_encoder(f"fairseq2:{models['w2v-bert'][0]}", 0)
    (wave,) = some_waves(9 * 320 + 240)
    convert = WaveformToFbankConverter(
        num_mel_bins=80, waveform_scale=2**15, channel_last=True, standardize=True
    )
    expected = convert({"waveform": wave[:, None], "sample_rate": 16_000.0})["fbank"]
    found = encoder.inputs(wave).reshape(-1, 80)[: len(expected)]
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_a_tokenizer_of_one_is_loaded_without_fairseq2(
    models: dict[str, tuple[Path, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    waves = some_waves(16_000, 20_000)
    options = {"model": f"fairseq2:{models['w2v-bert'][0]}", "layer": 2, "num_units": 20}
    tokenizer = SSLKMeans.fit(waves, options, seed=1)
    tokenizer.save(tmp_path / "tokenizer")
    monkeypatch.setitem(sys.modules, "fairseq2", None)
    loaded = SSLKMeans.load(tmp_path / "tokenizer")
    before, after = (each.encode(waves[0][None])[0].codes for each in (tokenizer, loaded))
    assert torch.equal(before, after)


def test_what_fairseq2_cannot_give_is_refused(
    models: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    for model, message in {
        "fairseq2:nobodys": r"fairseq2 knows no model 'nobodys'; expected the name of an asset",
        "fairseq2:llama3_8b": r"is a 'llama'; expected one of wav2vec2, wav2vec2_asr, w2vbert",
        f"fairseq2:{tmp_path}/no.yaml": r"no.yaml cannot be loaded: .*No such file",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            load_encoder(model, 1)
    path, _ = models["wav2vec2"]
    with pytest.raises(ConfigError, match=re.escape(f"fairseq2:{path} has 3 layers")):
        load_encoder(f"fairseq2:{path}", 4)
    with pytest.raises(ConfigError, match=r"leave tokenizer\.options\.sha256"):
        load_encoder(f"fairseq2:{path}", 1, sha256="0" * 8)
    odd = {**MODELS["wav2vec2"], "checkpoint": str(path.with_suffix(".pt"))}
    settings = {**WAVE, "norm_order": "PRE"}
    odd["model_config"] = {"encoder_config": {"_set_": settings}}
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(odd))
    with pytest.raises(CheckpointError, match=r"cannot be loaded|has no counterpart in transforme"):
        load_encoder(f"fairseq2:{tmp_path / 'odd.yaml'}", 1)


@pytest.mark.usefixtures("models")
def test_the_seamless_encoder_has_the_shape_of_xls_r_1b() -> None:
    """Without its 4 GB: the card is one that fairseq2 understands."""
    from fairseq2.assets import AssetCard
    from fairseq2.models.wav2vec2 import get_wav2vec2_model_hub

    card = AssetCard("xlsr2_1b_v2", CARDS["xlsr2_1b_v2"])
    config = get_wav2vec2_model_hub().get_model_config(card)
    encoder = config.encoder_config
    assert (encoder.model_dim, encoder.num_encoder_layers, encoder.ffn_inner_dim) == (
        1280,
        48,
        5120,
    )
    assert encoder.norm_order.name == "PRE"
    assert encoder.feature_extractor_layer_norm_convs
