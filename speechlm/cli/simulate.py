"""Let a played user speak with a bundle, and write down both sides in time with each other.

The user is a script (YAML or JSON: what to say or play, how long to wait, what to wait for), a
recording, or a folder with an input.wav a dialogue, as Full-Duplex-Bench has them. For each
dialogue the output holds a folder with input.wav, output.wav (as long), stereo.wav (user left,
model right), events.jsonl and timeline.png. As fast as it goes, computing takes no time on the
dialogue's clock, and the same words give the same files; with --real-time it takes the time that
it takes.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from speechlm.cli import render
from speechlm.errors import CorpusError, InputError, PartialFailure, SpeechLMError

if TYPE_CHECKING:
    from speechlm.dialogue.users import User

EXAMPLES = (
    ("speechlm simulate runs/duplex/bundle talk.yaml -o talks/", "scripted dialogues"),
    ("speechlm simulate runs/duplex/bundle question.wav -o talks/", "a recorded user"),
    (
        "speechlm simulate runs/duplex/bundle Full-Duplex-Bench/v1/ -o outputs/ --keep-going",
        "all users of a benchmark",
    ),
    (
        "speechlm simulate runs/demo/bundle talk.yaml -o talks/ --real-time --turns quick",
        "with the time that computing takes, and turns that end after little silence",
    ),
)
SECTIONS = ()

SCRIPTS = (".yaml", ".yml", ".json")
INPUT_NAME = "input.wav"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="a folder that 'speechlm train' wrote, or a hub id"
    )
    parser.add_argument(
        "users",
        type=Path,
        metavar="USERS",
        help="a script, a recording, or a folder with an input.wav a dialogue",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="a folder a dialogue"
    )
    parser.add_argument(
        "--real-time", action="store_true", help="let the clock go as time goes, not faster"
    )
    parser.add_argument(
        "--turns",
        metavar="PRESET",
        help="how turns are found, for bundles that answer whole turns (openai)",
    )
    render.add_live_sampling(parser)
    parser.add_argument(
        "--keep-going", action="store_true", help="exit 0 also when some dialogues failed"
    )


def run(args: Namespace) -> None:
    from speechlm.bundle import SpeechLM
    from speechlm.dialogue.recorded import write_dialogue
    from speechlm.dialogue.running import choose_threads
    from speechlm.dialogue.settings import SessionSettings, turn_preset
    from speechlm.dialogue.simulate import rate_for, simulate
    from speechlm.progress import progress

    turns = turn_preset(args.turns or "openai")
    users = list(users_of(args.users))
    bundle = SpeechLM.from_pretrained(args.bundle)
    choose_threads(bundle)
    rate = rate_for(bundle)
    settings = SessionSettings(
        input_rate=rate,
        output_rate=rate,
        turns=turns,
        sampling=render.live_sampling(args),
        seed=args.seed,
    )
    failures = []
    with progress("simulating", len(users), "dialogues") as advance:
        for name, make in users:
            try:
                dialogue = simulate(bundle, make(rate), settings, real_time=args.real_time)
                write_dialogue(args.output / name, dialogue)
            except (SpeechLMError, OSError) as error:
                failures.append(f"{name}: {error}")
            advance(1)
    for line in failures:
        print(line)
    print(f"{len(users) - len(failures)} dialogues in {args.output}")
    if failures and not args.keep_going:
        raise PartialFailure(f"{len(failures)} of {len(users)} dialogues failed, see above")


def users_of(given: Path) -> Iterator[tuple[str, Callable[[int], User]]]:
    """Each dialogue's name, and its user at a sample rate.

    Raises:
        ConfigError: A script that is none.
        CorpusError: A folder without an input.wav.
        InputError: Nothing there.
    """
    from speechlm.dialogue.users import ScriptedUser, read_scripts

    if given.is_dir():
        inputs = sorted(given.rglob(INPUT_NAME))
        if not inputs:
            raise CorpusError(f"{given}: expected a folder a dialogue, {INPUT_NAME} in each")
        for path in inputs:
            yield path.parent.relative_to(given).as_posix(), recorded(path)
    elif given.suffix.lower() in SCRIPTS:
        for script in read_scripts(given):
            yield script.id, lambda rate, script=script: ScriptedUser(script, rate)  # type: ignore[misc]
    elif given.is_file():
        yield given.stem, recorded(given)
    else:
        raise InputError(f"{given}: expected a script, a recording or a folder; there is nothing")


def recorded(path: Path) -> Callable[[int], User]:
    """A recording as a user."""

    def make(rate: int) -> User:
        from speechlm.audio import resample
        from speechlm.dialogue.users import RecordedUser
        from speechlm.evaluation.interaction.voice_activity import SAMPLE_RATE, load_channels

        wave = load_channels(path).mean(dim=0)
        return RecordedUser(resample(wave, SAMPLE_RATE, rate))

    return make
