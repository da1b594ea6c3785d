"""The repository's shape: what may stand where, and that the wheel carries it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TOP_LEVEL = {
    *(".ci", ".git", ".gitignore", "LICENSE", "Makefile", "README.md", "pyproject.toml"),
    *("configs", "docs", "speechlm", "tests", "tokenizers", "vocoders"),
}

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="not run from a checkout"
)


def tracked() -> list[Path]:
    """The files of the repository, those not yet committed included, ignored ones not."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a checkout")
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).exists()]


def test_nothing_new_stands_at_the_top_level() -> None:
    assert {path.parts[0] for path in tracked()} <= TOP_LEVEL


@pytest.mark.parametrize("folder", ["tests", "tokenizers", "vocoders", "configs", "docs"])
def test_folders_that_must_not_be_packages_have_no_init(folder: str) -> None:
    # tokenizers/__init__.py would shadow Hugging Face's library of that name.
    packages = {"tokenizers": "speechlm_tokenizers", "vocoders": "speechlm_vocoders"}
    stray = [
        path
        for path in (ROOT / folder).rglob("__init__.py")
        if packages.get(folder) not in path.relative_to(ROOT).parts
    ]
    assert stray == []


def test_every_folder_of_python_in_the_packages_is_a_package() -> None:
    for source in ("speechlm", "tokenizers/speechlm_tokenizers", "vocoders/speechlm_vocoders"):
        for file in (ROOT / source).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), file


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_hugging_face_tokenizers_is_not_shadowed_in_the_checkout() -> None:
    pytest.importorskip("tokenizers")
    code = "import tokenizers; print(tokenizers.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_pinned_versions_name_no_address_and_meet_what_the_project_asks_for() -> None:
    text = (ROOT / ".ci" / "pins.toml").read_text(encoding="utf-8")
    assert "://" not in text
    pins = tomllib.loads(text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name in ("train", "core"):
        pinned = {line.partition("==")[0] for line in pins["both"]["pins"] + pins[name]["pins"]}
        asked = list(project["dependencies"])
        for extra in pins["resolve"][name]["extras"]:
            asked += project["optional-dependencies"][extra]
        missing = {normal(requirement) for requirement in asked} - pinned
        assert missing == set(), f"run 'make pins': the {name} set lacks {missing}"


def normal(requirement: str) -> str:
    """A requirement's distribution name as pins spell it."""
    name = requirement.strip()
    for stop in "<>=!~ ;[":
        name = name.partition(stop)[0]
    return name.lower().replace("_", "-")


def test_the_wheel_carries_the_packages_the_presets_and_the_recordings(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for source in (ROOT / "speechlm", *ROOT.glob("*/speechlm_*")):
        for file in source.rglob("*"):
            if file.suffix in (".py", ".flac", ".typed") and not file.name.startswith("."):
                assert file.relative_to(source.parent).as_posix() in names
    for preset in (ROOT / "configs").glob("*.yaml"):
        assert f"speechlm/configs/{preset.name}" in names
    # Nothing at a name that would overwrite another distribution.
    tops = {name.partition("/")[0] for name in names}
    allowed = {"speechlm", "speechlm_tokenizers", "speechlm_vocoders"}
    assert {top for top in tops if not top.endswith(".dist-info")} == allowed
