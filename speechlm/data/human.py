"""The human recordings that come with speechlm: answers of the spoken questions, and prompts.

One studio voice, 16 kHz, CC-BY-SA-3.0; ``recordings/LICENSE.md`` has credit and source.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from speechlm.files import write_folder_aside

SPEAKER = "allison"
"""What manifests call the voice of all these recordings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HumanClip:
    """One recording of the package."""

    path: Path
    """A FLAC file, 16 kHz, one channel."""
    text: str
    """What is said."""
    group: Literal["answers", "prompts"]
    """``answers``: one word each. ``prompts``: sentences of 3 to 9 seconds."""


def recordings_folder() -> Path:
    """Where the package keeps its recordings."""
    return Path(str(resources.files("speechlm.data") / "recordings"))


def human_clips(group: Literal["answers", "prompts"] | None = None) -> dict[str, HumanClip]:
    """The recordings by name, of one group or of both, in a fixed order."""
    folder = recordings_folder()
    index: dict[Literal["answers", "prompts"], dict[str, str]] = json.loads(
        (folder / "index.json").read_text(encoding="utf-8")
    )
    return {
        name: HumanClip(path=folder / f"{name}.flac", text=text, group=kind)
        for kind, clips in index.items()
        if group in (None, kind)
        for name, text in clips.items()
    }


def write_prompts(folder: Path) -> None:
    """Lay the prompts out as a corpus: FLAC files, ``corpus.jsonl`` and the licence.

    Args:
        folder: Made, or replaced as a whole if it is there.
    """
    with write_folder_aside(folder) as aside:
        rows = []
        for name, clip in human_clips("prompts").items():
            shutil.copyfile(clip.path, aside / clip.path.name)
            row = {"id": name, "audio": clip.path.name, "text": clip.text, "speaker": SPEAKER}
            rows.append(json.dumps(row, ensure_ascii=False) + "\n")
        shutil.copyfile(recordings_folder() / "LICENSE.md", aside / "LICENSE.md")
        (aside / "corpus.jsonl").write_text("".join(rows), encoding="utf-8")
