"""The README's code runs as it stands, and its commands are understood.

Python blocks run in order in one namespace, in a folder that has a small bundle at
``runs/demo/bundle`` and a recording ``question.wav``. Shell lines are parsed, not run: their
targets, subcommands, options, keys and extras must exist.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest
import soundfile
from small_bundle import question

from speechlm.cli.arguments import parse
from speechlm.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARDS = {
    group: (ROOT / group / "README.md").read_text(encoding="utf-8")
    for group in ("tokenizers", "vocoders")
}
PAGES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCK.findall(README) if language == "python"]
SHELL = [
    line
    for text in (README, *CARDS.values(), *PAGES)
    for language, code in BLOCK.findall(text)
    if language in ("bash", "sh", "shell", "console")
    for line in code.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


def test_there_is_code_to_run() -> None:
    assert PYTHON
    assert any(line.split()[:2] == ["make", "demo"] for line in SHELL)
    assert any(line.split()[:2] == ["make", "test"] for line in SHELL)


def test_python_blocks_run_and_make_sound(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle_folder, tmp_path / "runs" / "demo" / "bundle")
    samples, rate = soundfile.read(question())
    soundfile.write(tmp_path / "question.wav", samples, rate)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, code in enumerate(PYTHON, start=1):
        exec(compile(code, f"README.md, Python block {number}", "exec"), namespace)
    made = set(tmp_path.glob("*.wav")) - {tmp_path / "question.wav"}
    assert made, "the blocks wrote no .wav"
    assert all(soundfile.info(path).frames for path in made)


@pytest.mark.parametrize("line", SHELL)
def test_shell_lines_are_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = [Path(word).name if index == 0 else word for index, word in split(line)]
    match words:
        case ["make", *targets]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            for target in targets:
                assert "=" in target or re.search(rf"^{target}:", makefile, re.MULTILINE), target
        case ["speechlm", name, *rest] if name in COMMANDS:
            parse(import_module(f"speechlm.cli.{name}"), name, rest, into=Namespace())
        case ["speechlm", "--help" | "--version"]:
            pass
        case ["pip", "install", *rest]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
            known = project["project"]["optional-dependencies"]
            for extras in re.findall(r"\[(.*?)\]", " ".join(rest)):
                assert set(extras.split(",")) <= set(known)
        case ["python", script, *_]:
            assert (ROOT / script).is_file()
        case ["cd" | "git" | "run" | "tensorboard" | "torchrun" | "apt-get" | "for" | "export", *_]:
            pass
        case _:
            pytest.fail(f"README.md shows a command that is not known here: {line}")


def split(line: str) -> list[tuple[int, str]]:
    """The words of a shell line, without prompt and comment."""
    return list(enumerate(shlex.split(line.removeprefix("$ "), comments=True)))


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("group", CARDS)
def test_every_part_that_is_installed_has_a_card(group: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = project["project"]["entry-points"][f"speechlm.{group}"]
    headings = re.findall(r"^## (.*)$", CARDS[group], re.MULTILINE)
    assert set(names) == set(re.findall(r"`([^`]+)`", " ".join(headings)))


@pytest.mark.parametrize("group", CARDS)
def test_cards_name_options_that_there_are(group: str) -> None:
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in CARDS
        for path in (ROOT / folder).glob("*/*.py")
    )
    for options in re.findall(r"^\| (`.*?`) \| [^|]* \| [^|]* \|$", CARDS[group], re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", options):
            assert re.search(rf'^    {name}: |"{name}"', code, re.MULTILINE), name
