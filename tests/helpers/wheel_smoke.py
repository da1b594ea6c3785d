"""What must work where only the wheel is installed: `.ci/run` calls this in such an environment.

The commands start, plug-ins and presets are found, and a bundle answers, without fairseq2.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile
from small_bundle import question, small_bundle

import speechlm

SPEECHLM = Path(sys.executable).with_name("speechlm")


def main() -> None:
    home = Path(speechlm.__file__).resolve()
    assert home.is_relative_to(Path(sys.prefix).resolve()), f"{home} is not the wheel's"
    assert importlib.util.find_spec("fairseq2") is None, "fairseq2 is installed here"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run("--help")
        listed = run("list")
        for name in ("logmel-kmeans", "centroid-mel", "demo.yaml"):
            assert name in listed, f"'speechlm list' does not show {name}"
        run("doctor")
        small_bundle().save_pretrained("bundle")
        run("generate", "bundle", str(question()), "-o", "answer.wav", "--max-units", "50")
        run("resynthesize", "bundle", str(question()), "-o", "back.wav")
        for name in ("answer.wav", "back.wav"):
            assert soundfile.info(name).duration > 0.3, f"{name} is too short"
    print("the wheel works")


def run(*words: str) -> str:
    """Run one command line of the wheel and show what it prints."""
    print(f"$ speechlm {' '.join(words)}", flush=True)
    done = subprocess.run([SPEECHLM, *words], stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="", flush=True)
    return done.stdout


if __name__ == "__main__":
    main()
