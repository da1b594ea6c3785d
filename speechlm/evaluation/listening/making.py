"""Making a listening test: a page with its recordings, and the key that stays at home.

``TEST/page`` can be opened as it is or put on any web server: nothing in it tells which system
made a recording. ``TEST/key.json`` does, and the analysis needs it.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import soundfile

from speechlm.errors import InputError
from speechlm.evaluation.listening.kinds import KINDS, Kind, KindName
from speechlm.evaluation.listening.sounds import (
    Sound,
    low_pass_anchor,
    read_systems,
    same_loudness,
    say_checks,
)
from speechlm.evaluation.page import page
from speechlm.files import sha256_of, write_folder_aside, write_json

FORMAT = "speechlm-listening/1"
KEY_NAME = "key.json"
PAGE_FOLDER = "page"
NUM_ORDERS = 64
"""Orders of the trials; a listener's id decides which one is theirs."""
ANCHOR = "low-pass anchor"
OPEN = "\0open/"
"""Before the names of open references; no folder's name has it."""
CHECK_SLIDERS = (0, 20, 40, 60, 80, 100)
ANSWER_S = 4.0
"""What answering a trial takes beside listening, for the estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trial:
    """What is heard together, by the names of sounds, in no order yet."""

    sounds: tuple[str, ...]
    reference: str = ""
    expected: tuple[int, ...] = ()
    """The right answer of a check of attention; empty for a real trial."""


def make_test(
    folders: Sequence[Path],
    output: Path,
    kind: KindName,
    *,
    question: str = "",
    checks: int = 3,
    equal_loudness: bool = False,
    seed: int = 1,
) -> list[str]:
    """Write a listening test.

    Args:
        folders: One a system, with recordings of the same names. Of ``cmos`` and ``ab`` the
            first is what each other is compared with; of ``mushra`` it is the reference.
        output: A folder that is not there yet, or empty.
        question: What listeners are asked; the kind's own if empty.
        checks: Trials that tell which answer to choose.
        equal_loudness: Bring all recordings to one mean square.
        seed: Of names and orders.

    Returns:
        Lines to read: what each system's recordings are like, and what should give pause.

    Raises:
        InputError: Too few folders, ``output`` holds something, or see :func:`read_systems`.
        CorpusError: See :func:`read_systems`.
        AudioError: A recording cannot be used.
        PluginError: Checks are asked for and the synthetic voice is not installed.
    """
    if len(folders) < (1 if kind == "mos" else 2):
        raise InputError(f"{kind}: expected two folders or more, got {len(folders)}")
    if checks < 0:
        raise InputError(f"checks: expected 0 or more, got {checks}")
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} holds something: name a folder that is not there yet")
    systems = read_systems(folders)
    if ANCHOR in systems:
        raise InputError(f"{ANCHOR}: the name of a system that the test makes; rename the folder")
    said = _describe(systems, kind, equal_loudness)
    if equal_loudness:
        systems = same_loudness(systems)
    draw = random.Random(f"listening {seed}")
    sounds, owners, trials = _trials(kind, systems)
    spoken = _checks(kind, len(trials[0].sounds), checks, draw, _mean_level_db(systems))
    sounds |= spoken[0]
    trials += spoken[1]
    names = draw.sample([f"{number:04d}" for number in range(len(sounds))], len(sounds))
    named = dict(zip(sounds, names, strict=True))
    shown: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "question": question or KINDS[kind].question,
        "scale": [[value, label] for value, label in KINDS[kind].scale.items()],
        "trials": [
            {
                "id": f"t{number:03d}",
                "clips": [named[name] for name in trial.sounds],
                "reference": named.get(trial.reference, ""),
            }
            for number, trial in enumerate(trials)
        ],
        "orders": _orders(trials, KINDS[kind], seed),
    }
    key: dict[str, Any] = {
        "systems": list(systems) + [ANCHOR] * (kind == "mushra"),
        "clips": {
            named[name]: {"system": system, "item": item} for name, (system, item) in owners.items()
        },
        "checks": {
            row["id"]: list(trial.expected)
            for row, trial in zip(shown["trials"], trials, strict=True)
            if trial.expected
        },
        "seed": seed,
    }
    with write_folder_aside(output) as aside:
        folder = aside / PAGE_FOLDER / "sounds"
        folder.mkdir(parents=True)
        digest = hashlib.sha256(json.dumps([shown, key], sort_keys=True).encode())
        for name, sound in sorted(sounds.items(), key=lambda each: named[each[0]]):
            path = folder / f"{named[name]}.wav"
            # Written anew, so that neither tags nor encodings tell who made it.
            soundfile.write(path, sound.wave.clamp(-1, 1).numpy(), sound.sample_rate, "PCM_16")
            digest.update(sha256_of(path).encode())
        shown = {"test": digest.hexdigest()[:16], **shown}
        index = aside / PAGE_FOLDER / "index.html"
        index.write_text(_page(shown), encoding="utf-8")
        write_json(aside / KEY_NAME, {**shown, **key, "data_sha256": digest.hexdigest()})
    minutes = sum(
        ANSWER_S + sum(sounds[name].seconds for name in (*trial.sounds, trial.reference) if name)
        for trial in trials
    )
    said.append(
        f"{len(trials)} trials, {len(spoken[1])} of them checks; about {minutes / 60:.0f} min a "
        "listener who hears everything once"
    )
    return said


def _trials(
    kind: KindName, systems: Mapping[str, Mapping[str, Sound]]
) -> tuple[dict[str, Sound], dict[str, tuple[str, str]], list[_Trial]]:
    """Sounds by name, whose they are, and what is heard together."""
    first, *others = systems
    owners = {
        f"{system}/{item}": (system, item) for system, part in systems.items() for item in part
    }
    sounds = {name: systems[system][item] for name, (system, item) in owners.items()}
    items = list(systems[first])
    if kind == "mos":
        return sounds, owners, [_Trial(sounds=(name,)) for name in sounds]
    if kind != "mushra":
        pairs = [(f"{first}/{item}", f"{other}/{item}") for other in others for item in items]
        return sounds, owners, [_Trial(sounds=pair) for pair in pairs]
    for item in items:
        # A file of its own, or its name would tell which of the recordings it is.
        sounds[f"{OPEN}{item}"] = systems[first][item]
        sounds[f"{ANCHOR}/{item}"] = low_pass_anchor(systems[first][item])
        owners[f"{ANCHOR}/{item}"] = (ANCHOR, item)
    return (
        sounds,
        owners,
        [
            _Trial(
                sounds=tuple(f"{system}/{item}" for system in (*systems, ANCHOR)),
                reference=f"{OPEN}{item}",
            )
            for item in items
        ],
    )


def _checks(
    kind: KindName, width: int, number: int, draw: random.Random, level_db: float
) -> tuple[dict[str, Sound], list[_Trial]]:
    """Trials that say what to choose."""
    told: dict[str, str] = {}
    trials = []
    opening = "This is a check of your attention."
    for index in range(number):
        name = f"check {index}"
        if kind == "mushra":
            expected = tuple(draw.choice(CHECK_SLIDERS) for _ in range(width))
            told[f"{name} open"] = f"{opening} Each recording says where to set its slider."
            told |= {
                f"{name} {place}": f"Please set this slider to {value}."
                for place, value in enumerate(expected)
            }
            sounds = tuple(f"{name} {place}" for place in range(width))
            trials.append(_Trial(sounds=sounds, reference=f"{name} open", expected=expected))
            continue
        value = draw.choice(list(KINDS[kind].scale))
        answer = KINDS[kind].scale[value]
        told[name] = f"{opening} Please choose: " + (
            f"{value}, {answer}." if kind == "mos" else f"{answer}."
        )
        if KINDS[kind].paired:
            told[f"{name} open"] = f"{opening} The other recording says what to choose."
        sounds = (name, f"{name} open") if KINDS[kind].paired else (name,)
        trials.append(_Trial(sounds=sounds, expected=(value,)))
    spoken = say_checks(list(told.values()), level_db) if told else []
    return dict(zip(told, spoken, strict=True)), trials


def _orders(trials: Sequence[_Trial], kind: Kind, seed: int) -> list[list[list[int]]]:
    """Each order: the number of a trial, then the places of its sounds as they are heard.

    Of pairs half are heard the other way round in every order.
    """
    orders = []
    for number in range(NUM_ORDERS):
        draw = random.Random(f"order {seed} {number}")
        turned = draw.sample(range(len(trials)), len(trials) // 2) if kind.paired else []
        order = []
        for index in draw.sample(range(len(trials)), len(trials)):
            width = len(trials[index].sounds)
            places = [1, 0] if index in turned else list(range(width))
            if width > 2 or not kind.paired:
                places = draw.sample(range(width), width)
            order.append([index, *places])
        orders.append(order)
    return orders


def order_of(listener: str, count: int) -> int:
    """Which order a listener gets: the 32-bit FNV-1a hash of the id, as the page takes it."""
    value = 0x811C9DC5
    for byte in listener.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    return value % count


def _page(shown: Mapping[str, Any]) -> str:
    folder = resources.files("speechlm.evaluation.listening")
    style, script = (
        (folder / f"listening.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js")
    )
    # Within a script "</" would end it.
    data = json.dumps(shown, ensure_ascii=False).replace("</", "<\\/")
    head = (
        # Nothing that a listener answers can leave the page but by the listener's own hand.
        '<meta http-equiv="Content-Security-Policy" content="connect-src \'none\'; '
        f"form-action 'none'\">\n<style>\n{style}</style>\n"
    )
    body = (
        "<header><h1>Listening test</h1></header>",
        '<div id="stage"></div>',
        "<noscript><p>This test needs JavaScript; please allow it and reload.</p></noscript>",
        f'<script type="application/json" id="test">{data}</script>',
        f"<script>\n{script}</script>",
    )
    return page("Listening test", body, head=head)


def _mean_level_db(systems: Mapping[str, Mapping[str, Sound]]) -> float:
    levels = [sound.level_db for part in systems.values() for sound in part.values()]
    return sum(levels) / len(levels)


def _describe(
    systems: Mapping[str, Mapping[str, Sound]], kind: KindName, equal_loudness: bool
) -> list[str]:
    """What the recordings of each system are like, and what may tell systems apart."""
    lines, rates, levels = [], set(), []
    for name, part in systems.items():
        own_rates = sorted({sound.sample_rate for sound in part.values()})
        channels = sorted({sound.channels for sound in part.values()})
        level_db = sum(sound.level_db for sound in part.values()) / len(part)
        seconds = sum(sound.seconds for sound in part.values())
        lines.append(
            f"{name}: {len(part)} recordings, {seconds:.0f} s, "
            f"{' and '.join(map(str, own_rates))} Hz, "
            f"{' and '.join(map(str, channels))} channel(s), mean level {level_db:.1f} dB"
        )
        rates.add(tuple(own_rates))
        levels.append(level_db)
        if channels != [1]:
            lines.append(f"note: {name}: channels are mixed down to one")
    if len(rates) > 1:
        lines.append("note: rates differ between systems; listeners may hear the bandwidth")
    if max(levels) - min(levels) > 1 and not equal_loudness:
        lines.append(
            f"note: mean levels differ by {max(levels) - min(levels):.1f} dB, and louder often "
            "sounds better; --same-loudness brings all to one"
        )
    first = next(iter(systems.values()))
    if kind == "mushra" and min(sound.sample_rate for sound in first.values()) < 12_000:
        lines.append("note: at such a rate the anchor hardly differs from the reference")
    return lines
