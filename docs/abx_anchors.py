"""Make the two folders on which docs/evaluation.md anchors ABX, from packages of Debian.

    apt-get download flite libflite1 festvox-ru asterisk-core-sounds-en
    for package in *.deb; do dpkg -x $package root; done
    python docs/abx_anchors.py root anchors
    speechlm evaluate mfcc --suite abx=anchors/flite -o evaluated/mfcc-flite

Nothing is installed. ``anchors/flite`` holds 160 prompts in each of flite's four voices,
``anchors/festvox-ru`` the first 250 sentences of a recorded Russian voice; each has recordings
and an item file, a line a phone that has one on each side.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VOICES = ("slt", "rms", "awb", "kal16")
NUM_SENTENCES = 160
NUM_RUSSIAN = 250
MOST_WORDS = 60
PAUSES = {"pau", "SIL", "ssil", "#"}
HEADER = "#file onset offset #phone prev-phone next-phone speaker"

Phone = tuple[str, float]
"""A phone and when it ends, s."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="where the packages were unpacked")
    parser.add_argument("output", type=Path, help="folder to make")
    args = parser.parse_args()
    make_flite(args.root.resolve(), args.output / "flite")
    make_russian(args.root.resolve(), args.output / "festvox-ru")


def make_flite(root: Path, folder: Path) -> None:
    """The longest prompts of a telephone exchange, by all voices; flite tells its phones' ends."""
    prompts = root / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    lines = gzip.decompress(prompts.read_bytes()).decode().splitlines()
    texts = [line.partition(": ")[2] for line in lines if not line.startswith(";")]
    fit = [text for text in dict.fromkeys(texts) if "[" not in text]
    fit = [text for text in fit if len(text.split()) <= MOST_WORDS]
    sentences = sorted(fit, key=lambda text: -len(text.split()))[:NUM_SENTENCES]
    folder.mkdir(parents=True, exist_ok=True)
    library = next(root.glob("usr/lib/*/libflite.so*")).parent
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}

    def speak(job: tuple[int, str]) -> list[str]:
        number, voice = job
        name = f"{voice}_{number:03d}"
        command = [str(root / "usr/bin/flite"), "-voice", voice, "-psdur"]
        command += ["-t", sentences[number], "-o", str(folder / f"{name}.wav")]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        ends = (word.rpartition(":") for word in told.stdout.split())
        return items(name, voice, [(phone, float(end)) for phone, _, end in ends])

    jobs = [(number, voice) for voice in VOICES for number in range(len(sentences))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [line for lines in pool.map(speak, jobs) for line in lines]
    write(folder, found)


def make_russian(root: Path, folder: Path) -> None:
    """Recorded sentences and the labels that are published with them: end, colour, phone."""
    voice = root / "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for path in sorted(voice.glob("lab/*.lab"))[:NUM_RUSSIAN]:
        rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
        phones = [(row[2], float(row[0])) for row in rows if len(row) == 3]
        shutil.copyfile(voice / "wav" / f"{path.stem}.wav", folder / f"{path.stem}.wav")
        found += items(path.stem, "nsh", phones)
    write(folder, found)


def items(file: str, speaker: str, phones: list[Phone]) -> list[str]:
    """The lines of all phones with a phone on each side, not a pause."""
    starts = [0.0, *(end for _, end in phones)]
    lines = []
    for place in range(1, len(phones) - 1):
        before, this, after = (phone for phone, _ in phones[place - 1 : place + 2])
        if PAUSES.isdisjoint({before, this, after}):
            onset, offset = starts[place : place + 2]
            lines.append(f"{file} {onset:.4f} {offset:.4f} {this} {before} {after} {speaker}")
    return lines


def write(folder: Path, lines: list[str]) -> None:
    (folder / f"{folder.name}.item").write_text("\n".join([HEADER, *lines]) + "\n")
    print(f"{folder}: {len(lines)} phones, {len(list(folder.glob('*.wav')))} recordings")


if __name__ == "__main__":
    main()
