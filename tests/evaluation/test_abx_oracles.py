"""ABX against the packages that papers used: what they gave on made features, and fastabx itself.

The world is uneven on purpose: voices, phones and neighbours come unequally often, so that an
order of means other than theirs gives another figure.
"""

from __future__ import annotations

import random
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechlm.evaluation.abx import HEADER, Distance, Item, Speakers, measure_abx

FRAME_RATE = 50.0
FRAMES = 60


def uneven_world(distance: Distance) -> tuple[dict[str, Tensor], list[Item]]:
    """Features of 12 recordings in 3 voices, and their phones; from Python's generator alone."""
    draw = random.Random(17)
    features, items = {}, []
    for number in range(12):
        file, speaker = f"f{number:02d}", draw.choices(["s1", "s2", "s3"], [3, 2, 2])[0]
        place = 0.013
        phones: dict[int, str] = {}
        while place < FRAMES / FRAME_RATE - 0.2:
            offset = place + draw.choice((0.05, 0.083, 0.12, 0.17))
            phone = draw.choices("pqr", [4, 2, 1])[0]
            items.append(
                Item(
                    file=file,
                    onset_s=Decimal(f"{place:.3f}"),
                    offset_s=Decimal(f"{offset:.3f}"),
                    phone=phone,
                    before=draw.choices("ab", [3, 1])[0],
                    after=draw.choices("cd", [2, 1])[0],
                    speaker=speaker,
                )
            )
            for frame in range(int(place * FRAME_RATE), int(offset * FRAME_RATE) + 1):
                phones[frame] = phone
            place = offset
        rows = []
        for frame in range(FRAMES):
            middle = "pqr".find(phones.get(frame, "p"))
            row = [draw.gauss(2.0 * (middle == axis), 1.0) for axis in range(4)]
            if distance == "kl-symmetric":
                row = [abs(value) + 0.05 for value in row]
                row = [value / sum(row) for value in row]
            rows.append([float(round(row[0]))] if distance == "identical" else row)
        features[file] = torch.tensor(rows, dtype=torch.float32)
    return features, items


def write_world(folder: Path, distance: Distance) -> Path:
    """As the packages read it: FILE.pt, and some.item."""
    features, items = uneven_world(distance)
    for file, frames in features.items():
        torch.save(frames, folder / f"{file}.pt")
    lines = [" ".join(HEADER)]
    for item in items:
        times = f"{item.onset_s} {item.offset_s}"
        lines.append(f"{item.file} {times} {item.phone} {item.before} {item.after} {item.speaker}")
    path = folder / "some.item"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


FASTABX: dict[tuple[Distance, Speakers], tuple[float, float]] = {
    ("angular", "within"): (3.3603902, 3.0475487),
    ("angular", "across"): (5.5607276, 4.4191106),
    ("euclidean", "within"): (5.4556220, 5.1898853),
    ("euclidean", "across"): (6.0271233, 4.2288867),
    ("kl-symmetric", "within"): (15.2405887, 9.4662771),
    ("kl-symmetric", "across"): (14.9105894, 14.0330511),
    ("identical", "within"): (21.9798369, 21.0108360),
    ("identical", "across"): (29.0362768, 30.1058377),
}
"""What fastabx 0.9.0 says, as it is and with the slices of Libri-Light."""
LIBRIABX2 = {"within": 3.0475488, "across": 4.4191107}
"""What zerospeech-libriabx2 0.9.8 says of ``angular``, whose slices are Libri-Light's."""
ONE_TIE = 0.001
"""How much one triple that is a tie by one and none by the other is, at most, in percent."""


@pytest.mark.parametrize(("distance", "speakers"), FASTABX)
def test_figures_are_fastabxs(distance: Distance, speakers: Speakers) -> None:
    features, items = uneven_world(distance)
    for librilight, expected in zip((False, True), FASTABX[distance, speakers], strict=True):
        found = measure_abx(
            features,
            items,
            FRAME_RATE,
            speakers=speakers,
            distance=distance,
            max_group=None,
            max_others=None,
            librilight=librilight,
        )
        assert found.value == pytest.approx(expected, abs=ONE_TIE)
        if distance == "angular" and librilight:
            assert found.value == pytest.approx(LIBRIABX2[speakers], abs=1e-5)


@pytest.mark.parametrize("distance", ["angular", "identical"])
def test_it_is_fastabx_where_that_is_installed(distance: Distance, tmp_path: Path) -> None:
    fastabx = pytest.importorskip("fastabx")
    path = write_world(tmp_path, distance)
    features, items = uneven_world(distance)
    speakers: Speakers
    for speakers in ("within", "across"):
        theirs = fastabx.zerospeech_abx(
            path,
            tmp_path,
            max_size_group=None,
            max_x_across=None,
            speaker=speakers,
            distance=distance,
            frequency=int(FRAME_RATE),
            progress=False,
        )
        ours = measure_abx(
            features,
            items,
            FRAME_RATE,
            speakers=speakers,
            distance=distance,
            max_group=None,
            max_others=None,
        )
        assert ours.value == pytest.approx(100 * theirs, abs=ONE_TIE)


def test_all_cells_by_their_number_are_the_mean_over_cells() -> None:
    features, items = uneven_world("angular")
    found = measure_abx(features, items, FRAME_RATE, max_group=None)
    assert sum(count for _, count in found.by_cell.values()) == found.num_cells
    assert found.value == pytest.approx(sum(found.by_pair.values()) / len(found.by_pair))
    # Some pairs of phones have more cells than others, so the two means differ.
    mean = sum(total for total, _ in found.by_cell.values()) / found.num_cells
    assert abs(mean - found.value) > 0.1
