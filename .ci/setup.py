"""Make a virtual environment with one set of exact versions, and this project in it.

    python3.11 .ci/setup.py train .venv        the set of `make`: everything, fairseq2 included
    python3.11 .ci/setup.py core .venv-core    newest torch and transformers, no fairseq2
    .venv/bin/python .ci/setup.py --pin        resolve both sets anew and rewrite pins.toml
    … --wheel dist/*.whl core .venv-wheel      a wheel with what it asks for, and nothing else

It needs nothing but Python and the package index that pip is configured for. `uv` installs
the set; where it cannot be had or fails, plain pip does. A set-up that was interrupted is
started again from nothing: only a finished one leaves `.ready` in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / ".ci" / "pins.toml"
MARK = "# Below this line `make pins` writes.\n"
STAMP = ".ready"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pin", action="store_true", help="resolve both sets anew")
    parser.add_argument("--wheel", type=Path, help="install this instead of the checkout")
    parser.add_argument("set", nargs="?", choices=["train", "core"])
    parser.add_argument("folder", nargs="?", type=Path, help="the environment, e.g. .venv")
    args = parser.parse_args()
    if args.pin:
        pin()
    elif args.folder is None:
        parser.error("expected a set and a folder, or --pin")
    else:
        set_up(args.set, args.folder, args.wheel)


def set_up(name: str, folder: Path, wheel: Path | None) -> None:
    """Fill ``folder`` with the set ``name``; an environment that was finished is updated.

    With a wheel only what it depends on is installed, in the versions of the set.
    """
    if sys.version_info < (3, 11):  # noqa: UP036, it is run by whatever python3 there is
        sys.exit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    start = time.monotonic()
    pins = tomllib.loads(PINS.read_text(encoding="utf-8"))
    python = folder / "bin" / "python"
    stamp = folder / STAMP
    if wheel or not stamp.exists() or subprocess.run([python, "-c", ""], check=False).returncode:
        shutil.rmtree(folder, ignore_errors=True)
        say(f"making {folder} with Python {sys.version.split()[0]}")
        venv.create(folder, with_pip=True)
    stamp.unlink(missing_ok=True)

    with tempfile.TemporaryDirectory() as temporary:
        requirements = Path(temporary) / "requirements.txt"
        exact = [
            *pins["both"]["pins"],
            *pins[name]["pins"],
            *pins["bare"]["pins"],
            *pins["bare"][name],
        ]
        uv = next(line for line in exact if line.startswith("uv=="))
        requirements.write_text("\n".join(exact) + "\n")
        say(f"installing the {name} set (about 7 GB of disk; seconds once it is in the cache)")
        if wheel:
            install(python, uv, "--constraint", str(requirements), str(wheel))
        else:
            # Every dependency is among the pins: --no-deps leaves nothing to resolve.
            install(python, uv, "--no-deps", "--requirement", str(requirements))
            install(python, uv, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    stamp.write_text(f"{name}\n")
    say(f"{folder} is ready after {time.monotonic() - start:.0f} s")


def install(python: Path, uv: str, *words: str) -> None:
    """``pip install words`` into the environment of ``python``, by uv where that works."""
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *quiet]
    has_uv = (python.parent / "uv").exists()
    if not has_uv:
        has_uv = subprocess.run([*pip, uv], check=False).returncode == 0
    if has_uv:
        environment = os.environ.copy()
        if "PIP_INDEX_URL" in environment:
            environment.setdefault("UV_DEFAULT_INDEX", environment["PIP_INDEX_URL"])
        command = [str(python.parent / "uv"), "pip", "install", "--python", str(python), *quiet]
        if subprocess.run([*command, *words], env=environment, check=False).returncode == 0:
            return
    say("uv did not install it, trying pip, which is slower")
    if subprocess.run([*pip, *words], check=False).returncode:
        sys.exit("the packages could not be installed; see above, then run the same again")


def pin() -> None:
    """Resolve both sets from pyproject.toml and rewrite the lower part of pins.toml."""
    head = PINS.read_text(encoding="utf-8").partition(MARK)[0]
    sets = tomllib.loads(head)["resolve"]
    pins = {name: resolve(**sets[name]) for name in sets}
    both = set.intersection(*map(set, pins.values()))
    parts = {"both": both, **{name: set(lines) - both for name, lines in pins.items()}}
    text = head + MARK
    for name, lines in parts.items():
        listed = "".join(f"    {json.dumps(line)},\n" for line in sorted(lines))
        text += f"\n[{name}]\npins = [\n{listed}]\n"
    aside = PINS.with_suffix(".aside")
    aside.write_text(text, encoding="utf-8")
    aside.replace(PINS)
    say(f"{PINS.relative_to(ROOT)}: " + ", ".join(f"{len(v)} in {k}" for k, v in parts.items()))


def resolve(extras: list[str], ask: list[str]) -> list[str]:
    """Exact versions of the project's dependencies with ``extras``, under the bounds ``ask``."""
    command = [str(Path(sys.executable).parent / "uv"), "pip", "compile", "-", "--quiet"]
    command += ["--universal", "--python-version=3.11", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url", "--no-emit-find-links"]
    with tempfile.TemporaryDirectory() as temporary:
        constraints = Path(temporary) / "constraints.txt"
        constraints.write_text("\n".join(ask) + "\n", encoding="utf-8")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = list(project["dependencies"])
        for extra in extras:
            wanted += project["optional-dependencies"][extra]
        done = subprocess.run(
            [*command, "--constraint", str(constraints)],
            input="\n".join(wanted),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return done.stdout.splitlines()


def say(line: str) -> None:
    print(f"set-up: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
