import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from speechlm.files import read_json, remove_abandoned, write_aside, write_folder_aside, write_json

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from speechlm.files import write_aside

with write_aside(Path(sys.argv[1])) as aside:
    aside.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    with write_aside(path) as aside:
        aside.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_the_aside_keeps_the_extension_that_writers_choose_a_format_by(tmp_path: Path) -> None:
    with write_aside(tmp_path / "a.b.flac") as aside:
        aside.touch()
        assert aside.suffix == ".flac"


def test_a_failing_body_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), write_aside(path) as aside:
        aside.write_text("half" * 100_000 + "\udcff", encoding="utf-8")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "x." + "y" * 253, ".hidden"])
def test_names_at_the_file_systems_limit_can_be_written(tmp_path: Path, name: str) -> None:
    with write_aside(tmp_path / name) as aside:
        aside.write_text("whole")
    with write_folder_aside(tmp_path / "folders" / name) as aside:
        (aside / "file").touch()
    assert (tmp_path / name).read_text() == "whole"
    assert os.listdir(tmp_path / "folders") == [name]


def test_a_killed_write_leaves_the_old_content_and_its_rest_is_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_under_way_is_not_cleared_away(tmp_path: Path) -> None:
    with write_aside(tmp_path / "a.txt") as aside:
        aside.write_text("whole")
        remove_abandoned(tmp_path)
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_another_machines_rest_is_cleared_away_after_a_day(tmp_path: Path) -> None:
    fresh = tmp_path / f".aside-elsewhere-1-{'0' * 16}.txt"
    stale = tmp_path / f".aside-elsewhere-2-{'0' * 16}"
    fresh.touch()
    stale.mkdir()
    os.utime(stale, (0, 0))
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == [fresh]


def test_a_folder_is_swapped_whole(tmp_path: Path) -> None:
    folder = tmp_path / "part"
    for content in ("first", "second"):
        with write_folder_aside(folder) as aside:
            (aside / "deep").mkdir()
            (aside / "deep" / content).touch()
        assert [file.name for file in folder.rglob("*")] == ["deep", content]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failing_body_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "part"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(UnicodeEncodeError), write_folder_aside(folder) as aside:
        (aside / "new").write_text("\udcff", encoding="utf-8")
    assert [file.name for file in tmp_path.rglob("*")] == ["part", "old"]


def test_json_keeps_its_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"größe": [1, None]})
    assert "größe" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"größe": [1, None]}


def test_json_can_hold_a_name_that_is_not_valid_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    write_json(tmp_path / "a.json", [name])
    assert read_json(tmp_path / "a.json") == [name]
