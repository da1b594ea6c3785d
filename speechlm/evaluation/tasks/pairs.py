"""Manifests of pairs: a recording that should be the likelier one, and one that should not.

Readers of the layouts in which benchmarks are published only write such a manifest, and refuse
one that is not whole: pairing by the order of files, as some tools do, lets one missing file
pair all others wrongly and say nothing.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from speechlm.errors import CorpusError
from speechlm.files import sha256_of, write_aside

MANIFEST_NAME = "pairs.jsonl"
TEXT_SUFFIX = ".txt"
"""Of a member that is written, not spoken."""
KEYS = ("voice", "type", "subtype", "frequency")
"""What rows may be told apart by, beside their id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two recordings of which a model should find the first more probable."""

    id: str
    """Pairs of one id are one item, such as a word in several voices."""
    positive: Path
    negative: Path
    prompt: Path | None = None
    """What both come after, and what is not scored itself."""
    voice: str = ""
    type: str = ""
    subtype: str = ""
    frequency: str = ""
    """How often a word comes in some corpus, or ``oov``."""

    @property
    def paths(self) -> list[Path]:
        """All its files."""
        return [path for path in (self.prompt, self.positive, self.negative) if path is not None]


def read_pairs(folder: Path) -> list[Pair]:
    """The pairs of a folder that has :data:`MANIFEST_NAME`.

    Raises:
        CorpusError: There is none, a row lacks a member, or a recording is missing.
    """
    path = folder / MANIFEST_NAME
    pairs = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        try:
            row = json.loads(line)
            known = {name: str(row.get(name, "")) for name in KEYS}
            pair = Pair(
                id=str(row["id"]),
                positive=folder / row["positive"],
                negative=folder / row["negative"],
                prompt=folder / row["prompt"] if "prompt" in row else None,
                **known,
            )
            pairs.append(pair)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise CorpusError(
                f"{path}:{number}: expected a JSON object with id, positive and negative, "
                f"got {line[:60]!r} ({error})"
            ) from error
    return checked(pairs, path)


def write_pairs(folder: Path, pairs: Iterable[Pair]) -> Path:
    """Write a manifest; recordings are named as they lie in ``folder``."""
    path = folder / MANIFEST_NAME
    with write_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        for pair in pairs:
            row = {
                "id": pair.id,
                **({"prompt": str(pair.prompt.relative_to(folder))} if pair.prompt else {}),
                "positive": str(pair.positive.relative_to(folder)),
                "negative": str(pair.negative.relative_to(folder)),
                **{name: value for name in KEYS if (value := getattr(pair, name))},
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def checked(pairs: Sequence[Pair], source: Path) -> list[Pair]:
    """The pairs, if there are any, their recordings exist and none is told twice.

    Raises:
        CorpusError: It is not so.
    """
    if not pairs:
        raise CorpusError(f"{source}: expected pairs of recordings, got none")
    seen: set[tuple[str, ...]] = set()
    for pair in pairs:
        name = (pair.id, *(getattr(pair, key) for key in KEYS))
        if name in seen:
            raise CorpusError(f"{source}: the pair {_named(pair)} is there twice")
        seen.add(name)
        for path in pair.paths:
            if not path.is_file():
                raise CorpusError(
                    f"{source}: {path} of the pair {_named(pair)} is missing; "
                    "download the data again, or take the row out"
                )
    return list(pairs)


def read_gold(path: Path, by: Sequence[str]) -> list[Pair]:
    """Pairs of a ``gold.csv`` of the ZeroSpeech challenges: a row a recording, beside it.

    Args:
        path: With columns ``filename``, ``id``, ``correct`` (1 or 0) and those of ``by``.
        by: Columns that both members of a pair share, beside ``id``.

    Raises:
        CorpusError: Columns are missing, or an item has not one right and one wrong member.
    """
    rows = list(csv.DictReader(_text(path).splitlines()))
    wanted = {"filename", "id", "correct", *by}
    if not rows or wanted - set(rows[0]):
        got = list(rows[0]) if rows else "no rows"
        raise CorpusError(f"{path}: expected columns {sorted(wanted)}, got {got}")
    members: dict[tuple[str, ...], dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        item = members.setdefault((row["id"], *(row[name] for name in by)), defaultdict(list))
        item[row["correct"].strip()].append(row)
    pairs = []
    for key, item in members.items():
        if set(item) != {"0", "1"} or any(len(found) != 1 for found in item.values()):
            counts = {name: len(found) for name, found in sorted(item.items())}
            raise CorpusError(
                f"{path}: expected one correct (1) and one incorrect (0) recording of "
                f"{'/'.join(key)}, got {counts}"
            )
        right, wrong = item["1"][0], item["0"][0]
        known = {name: right.get(name) or "" for name in KEYS}
        positive, negative = (_beside(path, row["filename"]) for row in (right, wrong))
        pairs.append(
            Pair(id=right["id"], positive=positive, negative=negative, prompt=None, **known)
        )
    return checked(pairs, path)


def read_swuggy(folder: Path) -> list[Pair]:
    """The lexical task of ZeroSpeech 2021: words and like-sounding non-words."""
    return read_gold(_file_in(folder, "gold.csv"), ["voice"])


def read_sblimp(folder: Path) -> list[Pair]:
    """The syntactic task of ZeroSpeech 2021: sentences, grammatical and not."""
    return read_gold(_file_in(folder, "gold.csv"), ["type", "subtype", "voice"])


def read_prosaudit(folder: Path) -> list[Pair]:
    """The prosodic task of ZeroSpeech 2023: pauses where they are natural, and elsewhere."""
    path = _file_in(folder, "gold.csv")
    header = next(csv.reader(_text(path).splitlines()), [])
    return read_gold(path, ["type", *({"voice"} & set(header))])


def read_stories(folder: Path, prompt_suffix: str, end_suffix: str) -> list[Pair]:
    """Spoken or topic StoryCloze: ``ID_correct.wav``, ``ID_incorrect.wav`` and ``ID_mutual.wav``.

    ``mutual`` is what both come after. Without one, both are whole stories; that is for speech
    alone. Any of them may be text, ``.txt``.

    Args:
        folder: Looked through with all folders in it.
        prompt_suffix: ``.wav`` or ``.txt``: what ``mutual`` is.
        end_suffix: The same of the two ends.
    """
    kinds = {"mutual": prompt_suffix, "correct": end_suffix, "incorrect": end_suffix}
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.rglob("*")):
        name, _, kind = path.stem.rpartition("_")
        if kinds.get(kind) != path.suffix:
            continue
        if kind in found[name]:
            raise CorpusError(f"{folder}: {found[name][kind]} and {path} are of one story")
        found[name][kind] = path
    prompted = any("mutual" in members for members in found.values())
    needed = {"correct", "incorrect"}
    if prompted or TEXT_SUFFIX in kinds.values():
        needed |= {"mutual"}
    for name, members in found.items():
        if missing := needed - set(members):
            kind = min(missing)
            raise CorpusError(
                f"{folder}: {name}_{kind}{kinds[kind]} is missing beside "
                f"{next(iter(members.values())).name}"
            )
    return checked(
        [
            Pair(
                id=name,
                prompt=members.get("mutual"),
                positive=members["correct"],
                negative=members["incorrect"],
            )
            for name, members in found.items()
        ],
        folder,
    )


def read_salmon(folder: Path) -> list[Pair]:
    """SALMon: a folder a part; the second field of a name is the pair, the first in order right."""
    pairs: list[Pair] = []
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        found: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(part.glob("*.wav")):
            fields = path.stem.split("_")
            if len(fields) < 2:
                raise CorpusError(f"{path}: expected a name such as sample_12_a.wav")
            found[fields[1]].append(path)
        for name, paths in found.items():
            if len(paths) != 2:
                raise CorpusError(
                    f"{part}: expected two recordings of the pair {name}, "
                    f"got {', '.join(path.name for path in paths)}"
                )
            pairs.append(
                Pair(id=f"{part.name}/{name}", positive=paths[0], negative=paths[1], type=part.name)
            )
    return checked(pairs, folder)


STORY_WAYS = (
    ("", ".wav", ".wav"),
    ("-st", ".wav", ".txt"),
    ("-ts", ".txt", ".wav"),
    ("-tt", ".txt", ".txt"),
)
"""From speech or text to either, as benchmarks of stories are called."""
READERS: Mapping[str, Callable[[Path], list[Pair]]] = {
    "pairs": read_pairs,
    "swuggy": read_swuggy,
    "sblimp": read_sblimp,
    "prosaudit": read_prosaudit,
    **{
        f"{name}{ways}": partial(read_stories, prompt_suffix=begin, end_suffix=end)
        for name in ("ssc", "tsc")
        for ways, begin, end in STORY_WAYS
    },
    "salmon": read_salmon,
}
"""What reads the layout in which each is published; ``pairs`` reads one of one's own."""


def data_sha256(pairs: Sequence[Pair]) -> str:
    """Of what is compared: how pairs are named, and every byte of their recordings."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps([pair.id, *(getattr(pair, key) for key in KEYS)]).encode())
        for path in pair.paths:
            digest.update(sha256_of(path).encode())
    return digest.hexdigest()


def _named(pair: Pair) -> str:
    return "/".join(part for part in (pair.id, *(getattr(pair, key) for key in KEYS)) if part)


def _beside(path: Path, name: str) -> Path:
    """A recording that a gold file names, with its ending or without."""
    found = path.parent / name
    return found if found.suffix else found.with_suffix(".wav")


def _file_in(folder: Path, name: str) -> Path:
    path = folder if folder.name == name else folder / name
    if not path.is_file():
        raise CorpusError(f"{folder}: expected a folder with {name}, as it is published")
    return path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise CorpusError(f"{path} is missing") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: expected UTF-8 text, got {error.object[:1]!r}...") from error
