"""The page's files: complete, without an outside address, and right where no browser is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import speechlm.dialogue.server

PAGE = Path(speechlm.dialogue.server.__file__).parent / "page"
LOGIC = Path(__file__).parent / "page_logic.test.mjs"
FILES = sorted(PAGE.iterdir())
ALLOWED_ADDRESSES = ("http://www.w3.org/2000/svg", "http://localhost")


def references(file: Path) -> set[str]:
    """Names of other files of the page."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".html":
        return {
            name.removeprefix("static/")
            for name in re.findall(r'(?:src|href)="([^"#]+)"', text)
            if name.startswith("static/")
        }
    return set(re.findall(r'(?:from |import\(|new URL\()"\./([^"]+)"', text))


def test_files_refer_to_each_other_and_all_are_referred_to() -> None:
    referred = set().union(*(references(file) for file in FILES))
    assert referred | {"index.html"} == {file.name for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_names_an_outside_address(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for allowed in ALLOWED_ADDRESSES:
        text = text.replace(allowed, "")
    assert not re.search(
        r"(?:https?:|wss?:)?//[\w.-]+\.[a-z]", re.sub(r"^\s*//.*", "", text, flags=re.M)
    )
    assert "@import" not in text


def test_nothing_is_inline_so_that_a_strict_policy_lets_the_page_run() -> None:
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", text)


def test_every_element_that_scripts_look_for_is_there() -> None:
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    there = re.findall(r'\sid="([^"]+)"', html)
    assert len(there) == len(set(there))
    for name in ("page.js", "view.js"):
        wanted = re.findall(r'find\("([^"]+)"\)', (PAGE / name).read_text(encoding="utf-8"))
        assert wanted
        assert set(wanted) <= set(there)


def test_the_server_gives_every_file_as_what_it_is(bundle_folder: Path) -> None:
    for package in ("starlette", "prometheus_client", "httpx", "onnxruntime"):
        pytest.importorskip(package)
    from starlette.testclient import TestClient

    from speechlm import SpeechLM
    from speechlm.dialogue.local import LocalService
    from speechlm.dialogue.server.access import Access
    from speechlm.dialogue.server.app import create_app
    from speechlm.dialogue.server.settings import ServerSettings

    service = LocalService(SpeechLM.from_pretrained(bundle_folder))
    app = create_app(service, ServerSettings(model="small"), Access())
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    page = client.get("/")
    assert page.text == (PAGE / "index.html").read_text(encoding="utf-8")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    kinds = {".js": "javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for file in FILES:
        if file.suffix in kinds:
            answer = client.get(f"/static/{file.name}")
            assert answer.content == file.read_bytes()
            assert kinds[file.suffix] in answer.headers["content-type"]


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("needs node")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout[1:].partition(".")[0]) < 18:
        pytest.skip("needs node 18 or later, which brings its own test runner")
    return found


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the page whose scripts node takes as modules, as browsers do."""
    folder = tmp_path_factory.mktemp("page") / "page"
    shutil.copytree(PAGE, folder)
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    return folder


def test_scripts_parse(node: str, modules: Path) -> None:
    for script in sorted(modules.glob("*.js")):
        done = subprocess.run(
            [node, "--check", script], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_what_needs_no_browser_does_what_it_should(node: str, modules: Path) -> None:
    done = subprocess.run(
        [node, "--test", LOGIC],
        env={**os.environ, "PAGE": str(modules)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
