"""UTMOS is loaded from a repository of the hub's form that lies on this disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from speechlm.errors import CheckpointError, InputError
from speechlm.evaluation.signal import utmos
from speechlm.evaluation.signal.utmos import UTMOS
from speechlm.files import sha256_of

HUBCONF = """
dependencies = ["torch"]
from speechmos.model import Small

def utmos22_strong(progress: bool = True, pretrained: bool = True):
    assert not pretrained, "weights are not this file's to load"
    return Small()
"""
MODEL = """
import torch

class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Linear(1, 1)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, wave, sr):
        assert sr == 16000
        level = wave.square().mean(dim=1, keepdim=True).sqrt()
        return self.dropout(self.scale(level)).squeeze(1) * 2 + 3
"""


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "speechmos").mkdir()
    (tmp_path / "hubconf.py").write_text(HUBCONF, encoding="utf-8")
    (tmp_path / "speechmos" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "speechmos" / "model.py").write_text(MODEL, encoding="utf-8")
    state = nn.ModuleDict({"scale": nn.Linear(1, 1)}).state_dict()
    state["scale.weight"].fill_(2.0)
    state["scale.bias"].fill_(-0.5)
    torch.save(state, tmp_path / "weights.pt")
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "speechmos"]:
        del sys.modules[name]


def open_small(repository: Path, sha256: str | None = None) -> UTMOS:
    weights = repository / "weights.pt"
    return UTMOS(
        str(repository),
        source="local",
        weights=str(weights),
        sha256=sha256 or sha256_of(weights),
    )


def test_code_and_weights_are_loaded_and_asked(repository: Path) -> None:
    scorer = open_small(repository)
    wave = torch.full((16_000,), 0.25)
    assert scorer.rate(wave) == pytest.approx((2 * 0.25 - 0.5) * 2 + 3)
    assert scorer.rate(0.5 * wave) == scorer.rate(0.5 * wave) == pytest.approx(2.5)


def test_a_recording_too_short_for_it_is_refused(repository: Path) -> None:
    with pytest.raises(InputError, match=r"at least 0\.1 s"):
        open_small(repository).rate(torch.ones(1_000))


def test_other_weights_than_the_pinned_are_refused(repository: Path) -> None:
    with pytest.raises(CheckpointError, match=r"UTMOS.*is another file or was changed"):
        open_small(repository, sha256="0" * 64)


def test_weights_of_another_network_are_refused(repository: Path) -> None:
    torch.save({"other": torch.ones(1)}, repository / "weights.pt")
    with pytest.raises(CheckpointError, match="expected the weights of UTMOS"):
        open_small(repository)
    (repository / "weights.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="expected the weights of UTMOS"):
        open_small(repository)


def test_without_a_network_it_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(utmos.torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(utmos.torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(CheckpointError, match=r"tarepan/SpeechMOS:ed25eac.*Name or service"):
        UTMOS()
