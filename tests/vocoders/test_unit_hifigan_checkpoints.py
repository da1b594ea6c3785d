"""Published checkpoints: read as they were written, with the samples of who wrote them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from speechlm.cli.main import main
from speechlm.errors import CheckpointError
from speechlm.plugins import load_vocoder
from speechlm.testing import check_vocoder
from speechlm.units import Units
from speechlm_tokenizers.logmel_kmeans import LogMelKMeans
from speechlm_vocoders.unit_hifigan import UnitHiFiGAN

NUM_UNITS, DIM, HOP = 64, 8, 320
SETTINGS: dict[str, Any] = {
    "resblock": "1",
    "num_embeddings": NUM_UNITS,
    "embedding_dim": DIM,
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 64,
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 2, 3]],
    "code_hop_size": HOP,
    "sampling_rate": 16000,
}
DURATIONS = {
    "dur_predictor_params": {
        "encoder_embed_dim": DIM,
        "var_pred_hidden_dim": 10,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    }
}
EXPRESSO = {"multispkr": "from_input_file", "num_speakers": 4, "multistyle": True, "num_styles": 3}


class PublishedModel(nn.Module):
    """The layers of a published vocoder by their published names, weight norm and all."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.settings = settings
        self.dict = nn.Embedding(settings["num_embeddings"], DIM)
        width = DIM
        if bins := settings.get("f0_quant_num_bin"):
            self.f0_quant_embed = nn.Embedding(bins, DIM)
            width += DIM
        elif settings.get("f0"):
            width += 1
        if settings.get("embedder_params"):
            self.spkr: nn.Module = nn.Linear(settings["embedder_dim"], DIM)
        elif settings.get("multispkr"):
            self.spkr = nn.Embedding(settings["num_speakers"], DIM)
        if settings.get("multistyle"):
            self.style = nn.Embedding(settings["num_styles"], DIM)
        width += DIM * (bool(settings.get("multispkr")) + bool(settings.get("multistyle")))
        if durations := settings.get("dur_predictor_params"):
            hidden = durations["var_pred_hidden_dim"]
            self.dur_predictor = nn.ModuleDict(
                {
                    "conv1": nn.Sequential(nn.Conv1d(DIM, hidden, 3, padding=1), nn.ReLU()),
                    "ln1": nn.LayerNorm(hidden),
                    "conv2": nn.Sequential(nn.Conv1d(hidden, hidden, 3, padding=1), nn.ReLU()),
                    "ln2": nn.LayerNorm(hidden),
                    "proj": nn.Linear(hidden, 1),
                }
            )
        channels = settings["upsample_initial_channel"]
        self.conv_pre = weight_norm(nn.Conv1d(width, channels, 7, padding=3))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(
            settings["upsample_rates"], settings["upsample_kernel_sizes"], strict=True
        ):
            up = nn.ConvTranspose1d(channels, channels // 2, kernel, rate, (kernel - rate) // 2)
            self.ups.append(weight_norm(up))
            channels //= 2
            for size, dilations in zip(
                settings["resblock_kernel_sizes"], settings["resblock_dilation_sizes"], strict=True
            ):
                self.resblocks.append(
                    nn.ModuleDict(
                        {
                            name: nn.ModuleList(
                                weight_norm(
                                    nn.Conv1d(channels, channels, size, dilation=d, padding="same")
                                )
                                for d in spread
                            )
                            for name, spread in (("convs1", dilations), ("convs2", [1] * 3))
                        }
                    )
                )
        self.conv_post = weight_norm(nn.Conv1d(channels, 1, 7, padding=3))

    def durations(self, codes: Tensor) -> Tensor:
        layers = self.dur_predictor
        hidden = layers["conv1"](self.dict(codes).transpose(1, 2)).transpose(1, 2)
        hidden = layers["conv2"](layers["ln1"](hidden).transpose(1, 2)).transpose(1, 2)
        logs = layers["proj"](layers["ln2"](hidden))[..., 0]
        return torch.round(torch.exp(logs) - 1).long().clamp(min=1)

    @torch.no_grad()
    def forward(
        self,
        codes: Tensor,
        f0: Tensor | None = None,
        spkr: Tensor | None = None,
        style: Tensor | None = None,
    ) -> Tensor:
        parts = [self.dict(codes)]
        if f0 is not None and self.settings.get("f0_quant_num_bin"):
            parts.append(self.f0_quant_embed(f0))
        elif f0 is not None:
            parts[0] = parts[0].repeat_interleave(f0.shape[1] // codes.shape[1], dim=1)
            parts.append(f0[..., None])
        for table, value in (("spkr", spkr), ("style", style)):
            if value is not None:
                parts.append(getattr(self, table)(value)[:, None].expand(-1, parts[0].shape[1], -1))
        hidden = self.conv_pre(torch.cat(parts, dim=2).transpose(1, 2))
        blocks = iter(self.resblocks)
        for up in self.ups:
            hidden = up(F.leaky_relu(hidden, 0.1))
            sums = []
            for _ in self.settings["resblock_kernel_sizes"]:
                block, result = next(blocks), hidden
                for one, two in zip(block["convs1"], block["convs2"], strict=True):
                    result = result + two(F.leaky_relu(one(F.leaky_relu(result, 0.1)), 0.1))
                sums.append(result)
            hidden = sum(sums) / len(sums)
        return torch.tanh(self.conv_post(F.leaky_relu(hidden)))[:, 0]


def _publish(folder: Path, settings: dict[str, Any], **save: Any) -> tuple[PublishedModel, Path]:
    """Write a checkpoint as fairseq does, under the names of weight norm in its day."""
    model = PublishedModel(settings).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            # Magnitudes that are not the directions' norms, or folding would not be tested.
            if name.endswith("original0"):
                tensor.mul_(0.5 + torch.rand_like(tensor))
        if hasattr(model, "dur_predictor"):
            model.dur_predictor["proj"].bias.fill_(1.5)
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in model.state_dict().items()
    }
    assert sum(name.endswith("weight_g") for name in old) > 30
    folder.mkdir(exist_ok=True)
    torch.save({"generator": old}, folder / "generator.pt", **save)
    (folder / "config.json").write_text(json.dumps(settings))
    return model, folder


@pytest.fixture(scope="module")
def tokenizer() -> LogMelKMeans:
    wave = torch.randn(80_000, generator=torch.Generator().manual_seed(0))
    options = {"num_units": NUM_UNITS, "iterations": 1}
    return LogMelKMeans.fit([wave], options, seed=0)


def _read(folder: Path, tokenizer: LogMelKMeans, **settings: Any) -> UnitHiFiGAN:
    return UnitHiFiGAN.from_checkpoint(
        folder / "generator.pt", folder / "config.json", tokenizer, **settings
    )


def _units(tokenizer: Any, frames: int, *sides: Tensor) -> Units:
    codes = torch.randperm(NUM_UNITS, generator=torch.Generator().manual_seed(frames))[:frames]
    return Units(
        codes=torch.stack([codes, *sides]),
        frame_rate=tokenizer.frame_rate,
        fingerprint=tokenizer.fingerprint,
    )


class WithPitch:
    """A tokenizer with 20 quantized pitches beside its units."""

    num_codebooks = 2
    vocab_size = NUM_UNITS
    codebook_sizes = (NUM_UNITS, 20)
    frame_rate = 50.0
    fingerprint = "with-pitch-0123456789abcdef"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_fairseq_gives_its_samples(
    tmp_path: Path, tokenizer: LogMelKMeans, zipped: bool
) -> None:
    model, folder = _publish(tmp_path, SETTINGS, _use_new_zipfile_serialization=zipped)
    vocoder = _read(folder, tokenizer)
    assert (vocoder.sample_rate, vocoder.hop_length) == (16_000, HOP)
    units = _units(tokenizer, 58)
    assert len(units.codes.unique()) > 50
    expected = model(units.codes)[0]
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(vocoder.decode([units])[0], expected, atol=1e-5, rtol=0)


def test_it_keeps_its_promises_and_needs_no_checkpoint_any_more(
    tmp_path: Path, tokenizer: LogMelKMeans
) -> None:
    _, folder = _publish(tmp_path / "published", SETTINGS | DURATIONS | EXPRESSO)
    vocoder = _read(folder, tokenizer)
    (folder / "generator.pt").unlink()
    check_vocoder(vocoder, [_units(tokenizer, 30), _units(tokenizer, 4)])


def test_the_command_takes_a_published_vocoder_for_a_run(
    tmp_path: Path, tokenizer: LogMelKMeans, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = _publish(tmp_path / "published", SETTINGS)
    tokenizer.save(tmp_path / "run" / "tokenizer")
    checkpoint, config = folder / "generator.pt", folder / "config.json"
    words = ["fit", f"output={tmp_path / 'run'}", "vocoder.name=unit-hifigan"]
    options = f"vocoder.options={{checkpoint: {checkpoint}, config: {config}}}"
    assert main([*words, "vocoder.options.checkpoint=G.pt"]) == 2
    assert "vocoder.options.checkpoint with vocoder.options.config" in capsys.readouterr().err
    for _ in range(2):  # the second time it is there already
        assert main([*words, options]) == 0
    taken = load_vocoder(tmp_path / "run" / "vocoder")
    assert taken.fingerprint == _read(folder, tokenizer).fingerprint


def test_durations_are_the_published_ones_whatever_shares_the_batch(
    tmp_path: Path, tokenizer: LogMelKMeans
) -> None:
    model, folder = _publish(tmp_path, SETTINGS | DURATIONS)
    vocoder = _read(folder, tokenizer, predict_durations=True)
    units = [_units(tokenizer, frames) for frames in (40, 1, 13)]
    for item, wave in zip(units, vocoder.decode(units), strict=True):
        durations = model.durations(item.codes)
        assert torch.equal(vocoder.with_durations(item).durations, durations[0])
        expected = model(item.codes.repeat_interleave(durations[0], dim=1))[0]
        torch.testing.assert_close(wave, expected, atol=1e-5, rtol=0)
    assert len(model.durations(units[0].codes).unique()) > 2


def test_voices_and_styles_are_the_published_ones(tmp_path: Path, tokenizer: LogMelKMeans) -> None:
    model, folder = _publish(tmp_path, SETTINGS | EXPRESSO)
    (folder / "speakers.txt").write_text("ex01\nex02\n")
    vocoder = _read(folder, tokenizer, speakers=folder / "speakers.txt")
    units = _units(tokenizer, 11)
    for name, row in (("ex02", 1), ("3", 3)):  # the table has rows that nobody named
        expected = model(units.codes, spkr=torch.tensor([row]), style=torch.tensor([2]))[0]
        wave = vocoder.decode([units], speaker=name, style="2")[0]
        torch.testing.assert_close(wave, expected, atol=1e-5, rtol=0)
    (folder / "speakers.txt").write_text("\n".join("abcde"))
    with pytest.raises(CheckpointError, match="holds 5 names, but the checkpoint has 4"):
        _read(folder, tokenizer, speakers=folder / "speakers.txt")
    with pytest.raises(CheckpointError, match=r"none\.txt cannot be read"):
        _read(folder, tokenizer, styles=folder / "none.txt")


def test_voices_by_embedding_are_the_published_ones(
    tmp_path: Path, tokenizer: LogMelKMeans
) -> None:
    given = {"multispkr": True, "embedder_params": {"any": 1}, "embedder_dim": 6}
    model, folder = _publish(tmp_path, SETTINGS | given)
    units, voice = _units(tokenizer, 9), torch.randn(6)
    wave = _read(folder, tokenizer).decode([units], speaker=voice)[0]
    torch.testing.assert_close(wave, model(units.codes, spkr=voice[None])[0], atol=1e-5, rtol=0)


def test_quantized_pitch_comes_as_a_second_codebook(tmp_path: Path) -> None:
    model, folder = _publish(tmp_path, SETTINGS | {"f0": True, "f0_quant_num_bin": 20})
    pitches = torch.randint(20, (17,))
    units = _units(WithPitch, 17, pitches)
    expected = model(units.codes[:1], f0=pitches[None])[0]
    wave = _read(folder, WithPitch).decode([units])[0]  # type: ignore[arg-type]
    torch.testing.assert_close(wave, expected, atol=1e-5, rtol=0)


def test_raw_pitch_may_be_of_a_higher_rate_than_units(
    tmp_path: Path, tokenizer: LogMelKMeans
) -> None:
    settings = SETTINGS | {"f0": True, "upsample_rates": [5, 4, 4, 2, 1]}
    settings["upsample_kernel_sizes"] = [11, 8, 8, 4, 3]
    model, folder = _publish(tmp_path, settings)
    units, f0 = _units(tokenizer, 12), torch.rand(1, 24)
    wave = _read(folder, tokenizer).decode([units], f0=[f0[0]])[0]
    torch.testing.assert_close(wave, model(units.codes, f0=f0)[0], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def seamless(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """transformers' own vocoder with small random weights, and a folder that it saved."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TCodeHifiGan

    config = transformers.SeamlessM4TConfig(
        unit_hifi_gan_vocab_size=NUM_UNITS,
        unit_embed_dim=24,
        spkr_embed_dim=6,
        lang_embed_dim=6,
        vocoder_num_spkrs=5,
        vocoder_num_langs=3,
        upsample_initial_channel=64,
        t2u_pad_token_id=NUM_UNITS,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = SeamlessM4TCodeHifiGan(config).eval()
    model.dur_predictor.proj.bias.data.fill_(1.5)
    folder = tmp_path_factory.mktemp("seamless")
    model.save_pretrained(folder)
    return model, folder


def test_seamless_gives_its_samples(seamless: tuple[Any, Path], tokenizer: LogMelKMeans) -> None:
    model, folder = seamless
    vocoder = UnitHiFiGAN.from_seamless(folder, tokenizer, predict_durations=True)
    units = _units(tokenizer, 55)
    assert len(units.codes.unique()) > 50
    with torch.no_grad():
        expected, _ = model(units.codes, spkr_id=torch.tensor([[3]]), lang_id=torch.tensor([[1]]))
    wave = vocoder.decode([units], speaker="3", style="1")[0]
    assert len(wave) > 2 * 55 * HOP, "durations of one frame each test nothing"
    assert expected.std() > 0.01
    torch.testing.assert_close(wave, expected[0], atol=1e-4, rtol=0)


def test_the_vocoder_is_found_inside_a_whole_seamless(
    seamless: tuple[Any, Path], tokenizer: LogMelKMeans, tmp_path: Path
) -> None:
    _, folder = seamless
    tensors = load_file(folder / "model.safetensors")
    inside = {f"vocoder.{name}": tensor for name, tensor in tensors.items()}
    save_file(inside, tmp_path / "two.safetensors")
    save_file({"lm_head.weight": torch.ones(2)}, tmp_path / "one.safetensors")
    places = {"lm_head.weight": "one.safetensors", **dict.fromkeys(inside, "two.safetensors")}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    languages = {"vocoder_lang_code_to_id": {"eng": 1, "deu": 0, "fra": 2}}
    (tmp_path / "generation_config.json").write_text(json.dumps(languages))
    vocoder = UnitHiFiGAN.from_seamless(tmp_path, tokenizer)
    assert vocoder.config.style_names == ("deu", "eng", "fra")
    alone = UnitHiFiGAN.from_seamless(folder, tokenizer)
    units = [_units(tokenizer, 5)]
    english = vocoder.decode(units, style="eng")[0]
    assert torch.equal(english, alone.decode(units, style="1")[0])
    (tmp_path / "two.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        UnitHiFiGAN.from_seamless(tmp_path, tokenizer)


def test_a_truncated_missing_or_foreign_checkpoint_is_refused(
    tmp_path: Path, tokenizer: LogMelKMeans
) -> None:
    _, folder = _publish(tmp_path, SETTINGS)
    path = folder / "generator.pt"
    content = path.read_bytes()
    for size in (0, 2, 200, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"generator\.pt .*download it again"):
            _read(folder, tokenizer)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such file; expected the weights"):
        _read(folder, tokenizer)
    torch.save({"model": {}}, path)
    with pytest.raises(CheckpointError, match='no weights under "generator"'):
        _read(folder, tokenizer)
    torch.save({"generator": {"conv_pre.bias": torch.zeros(64)}}, path)
    with pytest.raises(CheckpointError, match="lacks the tensor"):
        _read(folder, tokenizer)


def test_what_is_pickled_beside_tensors_is_never_run(
    tmp_path: Path, tokenizer: LogMelKMeans
) -> None:
    _, folder = _publish(tmp_path, SETTINGS)
    torch.save({"generator": {"x": Trap()}}, folder / "generator.pt")
    with pytest.raises(CheckpointError, match="is not unpickled"):
        _read(folder, tokenizer)
    assert not Trap.sprung


class Trap:
    """Would tell if it were unpickled."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Trap, "sprung", True)


def test_another_file_than_the_sha256_says_is_refused(
    tmp_path: Path, tokenizer: LogMelKMeans
) -> None:
    _, folder = _publish(tmp_path, SETTINGS)
    right = hashlib.sha256((folder / "generator.pt").read_bytes()).hexdigest()
    _read(folder, tokenizer, sha256=right.upper())
    wrong = "0" * 64
    with pytest.raises(CheckpointError, match=f"has the SHA-256 {right}, expected {wrong}"):
        _read(folder, tokenizer, sha256=wrong)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            json.dumps({"embedding_dim": 8, "upsample_rates": [2]}),
            "lacks num_embeddings, upsample_kernel_sizes, .*resblock_dilation_sizes",
        ),
        (json.dumps(SETTINGS | {"upsample_rates": "many"}), "cannot be used: upsample_rates"),
        (json.dumps(SETTINGS | {"upsample_rates": [5, 4]}), "one upsample_kernel_sizes for each"),
        (json.dumps(SETTINGS | {"sampling_rate": "16k"}), "expected sampling_rate to be"),
        (json.dumps(SETTINGS | {"embedding_dim": 9}), "is .*, expected .*: it is of another"),
        (json.dumps(SETTINGS | {"resblock_kernel_sizes": [3, 7, 9]}), "for each of resblock"),
        (json.dumps([1]), "expected keys and values, got a list"),
        ('{"num_emb', "cannot be read as JSON"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    tmp_path: Path, tokenizer: LogMelKMeans, content: str, message: str
) -> None:
    _, folder = _publish(tmp_path, SETTINGS)
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        _read(folder, tokenizer)


def test_a_checkpoint_for_other_units_is_refused(tmp_path: Path, tokenizer: LogMelKMeans) -> None:
    _, folder = _publish(tmp_path, SETTINGS | {"num_embeddings": 100})
    with pytest.raises(
        CheckpointError, match=r"units of \[100\] at 50 Hz, but .* are \[64\] at 50"
    ):
        _read(folder, tokenizer)
    _, folder = _publish(tmp_path, SETTINGS | {"sampling_rate": 8000})
    with pytest.raises(CheckpointError, match=r"units of \[64\] at 25 Hz, but .* are \[64\] at 50"):
        _read(folder, tokenizer)
    with pytest.raises(CheckpointError, match="it is of no SeamlessM4T"):
        UnitHiFiGAN.from_seamless(folder, tokenizer)
