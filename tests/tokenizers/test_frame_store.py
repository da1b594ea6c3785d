"""A sample of frames is bounded, uniform, and the same after any kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechlm.errors import CheckpointError
from speechlm_tokenizers import frame_store
from speechlm_tokenizers.frame_store import FrameStore


def recording(place: int) -> Tensor:
    """Frames that say where they come from, float32 [F, 2]."""
    frames = 10 + place % 7
    return torch.stack([torch.full((frames,), float(place)), torch.arange(float(frames))], dim=1)


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_store, "SAVE_EVERY_S", 0.0)


def test_it_holds_a_uniform_sample_in_bounded_memory() -> None:
    store = FrameStore(400, 2, seed=1)
    for place in range(300):
        store.add(recording(place))
        assert store._held <= 1.25 * 400
    frames = store.frames()
    assert len(frames) == 400
    assert len(frames.unique(dim=0)) == 400
    thirds = torch.histc(frames[:, 0], 3, 0, 300) / 400
    assert (thirds - 1 / 3).abs().max() < 0.08


def test_few_frames_are_all_kept_and_a_seed_orders_them() -> None:
    stores = [FrameStore(400, 2, seed) for seed in (1, 1, 2)]
    for store in stores:
        for place in range(5):
            store.add(recording(place))
    first, same, other = (store.frames() for store in stores)
    assert len(first) == sum(len(recording(place)) for place in range(5))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert len(torch.cat([first, other]).unique(dim=0)) == len(first)


@pytest.mark.usefixtures("saves")
def test_killed_anywhere_it_goes_on_to_the_same_sample(tmp_path: Path) -> None:
    whole = FrameStore(100, 2, seed=3)
    for place in range(60):
        whole.add(recording(place))
    place = 0
    for die_at in (1, 2, 20, 21, 47, 60):
        store = FrameStore(100, 2, seed=3, folder=tmp_path)
        assert store.num_recordings == place
        while place < die_at:
            store.add(recording(place))
            place += 1
    assert torch.equal(FrameStore(100, 2, seed=3, folder=tmp_path).frames(), whole.frames())
    rows = sum(path.stat().st_size for path in tmp_path.iterdir()) / 16
    assert rows < 6 * 100, "what is kept on disk is bounded too"


@pytest.mark.usefixtures("saves")
def test_a_kill_between_writing_and_deleting_counts_nothing_twice(tmp_path: Path) -> None:
    store = FrameStore(20, 2, seed=3, folder=tmp_path)
    older = {}
    for place in range(12):
        store.add(recording(place))
        older |= {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(older) > len(list(tmp_path.iterdir())), "some were merged"
    for path, content in older.items():
        path.write_bytes(content)
    again = FrameStore(20, 2, seed=3, folder=tmp_path)
    assert again.num_recordings == 12
    assert torch.equal(again.frames(), store.frames())


@pytest.mark.usefixtures("saves")
def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    FrameStore(20, 2, seed=3, folder=tmp_path).add(recording(0))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"cannot be read .*delete .* to begin anew"):
        FrameStore(20, 2, seed=3, folder=tmp_path)
