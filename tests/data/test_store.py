import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.dataset
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechlm.data.corpus import Word
from speechlm.data.shards import UnitFormat, write_shard
from speechlm.data.store import StoredUnits, UnitStore, write_store
from speechlm.errors import CorpusError, FingerprintError
from speechlm.units import Units

FORMAT = UnitFormat(fingerprint="noise-1", frame_rate=50.0, vocab_size=9, num_codebooks=2)


def row(number: int, num_frames: int = 4, num_codebooks: int = 2, **other: object) -> StoredUnits:
    codes = torch.arange(num_codebooks * num_frames).reshape(num_codebooks, num_frames) + number
    units = Units(codes=codes % 9, frame_rate=50.0, fingerprint="noise-1")
    return replace(StoredUnits(id=f"r{number}", units=units, duration_s=num_frames / 50), **other)


def same(a: StoredUnits, b: StoredUnits) -> bool:
    durations = [x.units.durations for x in (a, b)]
    return (
        replace(a, units=b.units) == b
        and torch.equal(a.units.codes, b.units.codes)
        and (a.units.frame_rate, a.units.fingerprint) == (b.units.frame_rate, b.units.fingerprint)
        and (durations[0] is None) == (durations[1] is None)
        and (durations[0] is None or torch.equal(*durations))
    )


texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@st.composite
def recordings(draw: st.DrawFn) -> list[StoredUnits]:
    rows = []
    for number in range(draw(st.integers(1, 12))):
        made = row(
            number,
            draw(st.integers(1, 5)),
            text=draw(texts),
            speaker=draw(texts),
            split=draw(st.sampled_from([None, "train", "test"])),
            reply=draw(texts),
            words=draw(st.sampled_from([None, (), (Word("é", 0.0, 0.25), Word("b", 0.25, 0.5))])),
            source="a.wav",
        )
        units = made.units.collapse() if draw(st.booleans()) else made.units
        rows.append(replace(made, units=units))
    return rows


@given(rows=recordings(), shard_size=st.integers(1, 5))
@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[StoredUnits], shard_size: int
) -> None:
    path = tmp_path_factory.mktemp("stores") / "store"
    write_store(path, FORMAT, rows, shard_size=shard_size)
    store = UnitStore.open(path)
    assert len(store) == len(store.rows()) == len(rows)
    assert all(same(a, b) for a, b in zip(store, rows, strict=True))
    assert all(same(store[each.id], each) for each in rows)
    for split in (None, "train", "test", "nobody's"):
        wanted = [each for each in rows if split in (None, each.split)]
        assert [each.id for each in store.rows(split)] == [each.id for each in wanted]
        arrays = store.arrays(split)
        assert arrays.ids == [each.id for each in wanted]
        for index, each in enumerate(wanted):
            assert torch.equal(arrays.codes_of(index), each.units.codes)


def test_a_store_says_whose_units_it_holds(tmp_path: Path) -> None:
    write_store(tmp_path / "store", FORMAT, [row(0)])
    store = UnitStore.open(str(tmp_path / "store"))
    assert store.fingerprint == "noise-1"
    assert (store.frame_rate, store.vocab_size, store.num_codebooks) == (50.0, 9, 2)
    assert "r0" in store
    assert "r1" not in store
    with pytest.raises(KeyError, match="holds no recording 'r1'"):
        store["r1"]


def test_rows_are_a_sequence(tmp_path: Path) -> None:
    write_store(tmp_path / "store", FORMAT, [row(n) for n in range(7)], shard_size=2)
    rows = UnitStore.open(tmp_path / "store").rows()
    assert rows[-1].id == "r6"
    assert [each.id for each in rows[1:5:2]] == ["r1", "r3"]
    assert next(reversed(rows)).id == "r6"
    with pytest.raises(IndexError):
        rows[7]


def test_other_tools_open_the_folder(tmp_path: Path) -> None:
    rows = [row(n, text=f"text {n}", words=(Word("a", 0.0, 0.5),)) for n in range(5)]
    write_store(tmp_path / "store", FORMAT, rows, shard_size=2)
    table = pyarrow.dataset.dataset(tmp_path / "store").to_table()
    assert table["id"].to_pylist() == ["r0", "r1", "r2", "r3", "r4"]
    assert table["codes"][1].as_py() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert table["num_frames"].to_pylist() == [4] * 5
    assert table["words"][0].as_py() == [{"word": "a", "start_s": 0.0, "end_s": 0.5}]


def no_folder(store: Path) -> None:
    for file in store.iterdir():
        file.unlink()
    store.rmdir()


def no_manifest(store: Path) -> None:
    (store / "_manifest.json").unlink()


def foreign_manifest(store: Path) -> None:
    (store / "_manifest.json").write_text("{}")


def broken_manifest(store: Path) -> None:
    (store / "_manifest.json").write_text('{"kind": ')


def later_layout(store: Path) -> None:
    manifest = json.loads((store / "_manifest.json").read_text())
    (store / "_manifest.json").write_text(json.dumps({**manifest, "layout_version": 99}))


def missing_shard(store: Path) -> None:
    (store / "units-00001.parquet").unlink()


def truncated_shard(store: Path) -> None:
    shard = store / "units-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])


def foreign_shard(store: Path) -> None:
    table = pyarrow.table({"a": [1]})
    pyarrow.parquet.write_table(table, store / "units-00001.parquet")


def unlisted_shard(store: Path) -> None:
    write_shard(store / "units-00009.parquet", FORMAT, [row(9)], {})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_folder, "{store}: no such unit store; 'speechlm tokenize' makes one"),
        (no_manifest, "{store} is not a unit store: it holds no _manifest.json; 'speechlm token"),
        (foreign_manifest, "{store} is not a unit store: its _manifest.json is of something els"),
        (broken_manifest, "{store}/_manifest.json cannot be read: Expecting value"),
        (later_layout, "{store} has layout 99, this speechlm reads 1; tokenize the corpus again"),
        (missing_shard, "{store} is incomplete: 1 of 2 shards are missing (1); run 'speechlm to"),
        (truncated_shard, "{store}/units-00001.parquet is not a shard of units that can be read"),
        (foreign_shard, "{store}/units-00001.parquet is not a shard of units that can be read"),
        (unlisted_shard, "{store}/units-00009.parquet is not listed in _manifest.json; move it"),
    ],
)
def test_a_folder_that_is_not_a_whole_store_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    store = tmp_path / "store"
    write_store(store, FORMAT, [row(0), row(1)], shard_size=1)
    spoil(store)
    with pytest.raises(CorpusError) as caught:
        UnitStore.open(store)
    assert str(caught.value).startswith(message.format(store=store))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["units-00001.parquet", "units-00007.parquet"])
def test_units_of_two_tokenizers_do_not_mix(tmp_path: Path, name: str) -> None:
    store = tmp_path / "store"
    write_store(store, FORMAT, [row(0), row(1)], shard_size=1)
    other = replace(FORMAT, fingerprint="noise-2")  # every shape agrees
    write_shard(store / name, other, [row(1)], {})
    with pytest.raises(FingerprintError) as caught:
        UnitStore.open(store)
    assert str(caught.value) == (
        f"unit store {store} was made for 'noise-1', but 'noise-2 in {name}' was given; "
        "move that file out of the folder, or tokenize into another one"
    )


def test_a_store_without_any_recording_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "store", FORMAT, [])
    with pytest.raises(CorpusError, match="holds no recording: all 0 of the corpus were skipped"):
        UnitStore.open(tmp_path / "store")


@pytest.mark.slow
def test_a_hundred_thousand_recordings_open_in_seconds(tmp_path: Path) -> None:
    rows = [row(n, 300) for n in range(100_000)]
    write_store(tmp_path / "store", FORMAT, rows)
    start = time.monotonic()
    store = UnitStore.open(tmp_path / "store")
    opened = time.monotonic()
    assert store.arrays().codes.shape == (100_000 * 600,)
    print(f"open {opened - start:.2f} s, arrays {time.monotonic() - opened:.2f} s")
    start = time.monotonic()
    assert store["r99999"].id == "r99999"
    assert sum(each.units.num_frames for each in store.rows()) == 100_000 * 300
    print(f"every row {time.monotonic() - start:.2f} s")
