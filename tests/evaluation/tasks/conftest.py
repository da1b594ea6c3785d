"""What the tests of benchmarks share: a bundle, and pairs of recorded words."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechlm import SpeechLM
from speechlm.data.human import human_clips
from speechlm.evaluation.tasks.pairs import Pair, write_pairs


@pytest.fixture(scope="module")
def model(bundle_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(bundle_folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Pairs of recorded words."""
    folder = tmp_path_factory.mktemp("pairs")
    paths = [clip.path for clip in list(human_clips("answers").values())[:24]]
    pairs = [
        Pair(id=str(index), positive=right, negative=wrong, type="ab"[index % 2])
        for index, (right, wrong) in enumerate(zip(paths[::2], paths[1::2], strict=True))
    ]
    for pair in pairs:
        for path in (pair.positive, pair.negative):
            (folder / path.name).write_bytes(path.read_bytes())
    moved = [
        Pair(
            id=pair.id,
            type=pair.type,
            positive=folder / pair.positive.name,
            negative=folder / pair.negative.name,
        )
        for pair in pairs
    ]
    write_pairs(folder, moved)
    return moved
