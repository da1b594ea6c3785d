"""NISQA's own weights are not for everyone, so most tests draw others of their shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.errors import CheckpointError, InputError
from speechlm.evaluation.signal import nisqa
from speechlm.evaluation.signal.nisqa import FIGURES, NISQA, SAMPLE_RATE
from speechlm.files import sha256_of

# What torchmetrics 1.9 says, with the published weights.
PUBLISHED = {
    "auth-incorrect": (4.0063, 4.3203, 4.3037, 3.9511, 3.7864),
    "two": (4.3137, 3.6775, 4.4138, 4.4125, 4.1615),
}


class Reference(nn.Module):
    """The same network, of torch's own parts."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, 64, 64, 64)
        self.cnn = nn.ModuleDict({"model": nn.ModuleDict()})
        for layer in range(1, 7):
            padding = (1, 1) if layer < 6 else (1, 0)
            conv = nn.Conv2d(widths[layer - 1], widths[layer], 3, padding=padding)
            self.cnn["model"][f"conv{layer}"] = conv
            self.cnn["model"][f"bn{layer}"] = nn.BatchNorm2d(widths[layer])
        layers = [nn.TransformerEncoderLayer(64, 1, 64, 0.1, batch_first=True) for _ in range(2)]
        time = {"linear": nn.Linear(384, 64), "norm1": nn.LayerNorm(64)}
        model = nn.ModuleDict({**time, "layers": nn.ModuleList(layers)})
        self.time_dependency = nn.ModuleDict({"model": model})
        self.pool_layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "model": nn.ModuleDict(
                        {
                            "linear1": nn.Linear(64, 128),
                            "linear2": nn.Linear(128, 1),
                            "linear3": nn.Linear(64, 1),
                        }
                    )
                }
            )
            for _ in FIGURES
        )

    def forward(self, mels: Tensor) -> list[float]:
        segments = [mels[:, i : i + 15] for i in range(0, mels.shape[1] - 14, 4)]
        rows = []
        for segment in segments:
            maps = segment[None, None]
            for layer in range(1, 7):
                maps = self.cnn["model"][f"conv{layer}"](maps)
                maps = self.cnn["model"][f"bn{layer}"](maps).relu()
                if layer in (1, 2, 4):
                    size = {1: (24, 7), 2: (12, 5), 4: (6, 3)}[layer]
                    maps = F.adaptive_max_pool2d(maps, size)
            rows.append(maps.flatten())
        model = self.time_dependency["model"]
        hidden = model["norm1"](model["linear"](torch.stack(rows)))[None]
        for layer in model["layers"]:
            hidden = layer(hidden)
        found = []
        for pool in self.pool_layers:
            one = pool["model"]
            shares = one["linear2"](one["linear1"](hidden[0]).relu()).softmax(dim=0)
            found.append(float(one["linear3"]((shares * hidden[0]).sum(dim=0))))
        return found


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.manual_seed(4)
    network = Reference()
    for name, tensor in network.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture
def weights(reference: Reference, tmp_path: Path) -> Path:
    path = tmp_path / "nisqa.tar"
    args = {"model": "NISQA_DIM", "cnn_kernel_size": (3, 3), "ms_sr": None, "dim": True}
    torch.save({"args": args, "model_state_dict": reference.state_dict()}, path)
    return path


def open_small(path: Path) -> NISQA:
    return NISQA(str(path), sha256=sha256_of(path))


def wave_of(name: str) -> Tensor:
    return load_audio(human_clips()[name].path, SAMPLE_RATE)


def test_it_is_the_network_of_torchs_parts(weights: Path, reference: Reference) -> None:
    wave = wave_of("two")
    with torch.no_grad():
        expected = reference(nisqa._log_mels(wave))
    found = open_small(weights).rate(wave)
    assert list(found) == list(FIGURES)
    assert list(found.values()) == pytest.approx(expected, abs=1e-5)


def test_what_is_too_short_or_too_long_is_refused(weights: Path) -> None:
    scorer = open_small(weights)
    for seconds in (0.03, 0.1, 53.0):
        wave = torch.sin(torch.arange(round(seconds * SAMPLE_RATE)) / 9)
        with pytest.raises(InputError, match=r"expected 0\.15 to 52 s"):
            scorer.rate(wave)
    assert scorer.rate(torch.sin(torch.arange(round(0.15 * SAMPLE_RATE)) / 9))["mos"]


def test_other_files_than_the_pinned_are_refused(weights: Path) -> None:
    with pytest.raises(CheckpointError, match=r"NISQA.*is another file or was changed"):
        NISQA(str(weights))
    for content in ({"model_state_dict": {"a": torch.ones(1)}}, {"args": {}}, [1]):
        torch.save(content, weights)
        with pytest.raises(CheckpointError, match="expected the weights of NISQA"):
            open_small(weights)


@pytest.mark.hub
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_rate_as_published(name: str) -> None:
    found = nisqa.nisqa().rate(wave_of(name))
    assert list(found.values()) == pytest.approx(PUBLISHED[name], abs=1e-3)
