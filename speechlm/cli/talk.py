"""Talk with a bundle: through microphone and loudspeaker, or from one file into another.

Speak when it says so; a pause ends your turn, and speaking over an answer stops it. With
headphones. Without them, --speakers keeps the model from hearing itself, and from being
interrupted. --input and --output do the same with files, on the same clock, and need no sound
card: each question of the recording is answered where it ends, and goes on over what follows.
"""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from speechlm.cli import render
from speechlm.errors import ConfigError

if TYPE_CHECKING:
    from speechlm.dialogue.messages import Event
    from speechlm.dialogue.simulate import Dialogue

EXAMPLES = (
    ("speechlm talk runs/demo/bundle", "microphone and loudspeaker, with headphones"),
    ("speechlm talk runs/demo/bundle --speakers --turns patient", "without; slower to answer"),
    (
        "speechlm talk runs/demo/bundle --input questions.wav --output answers.wav",
        "a recording with pauses, answered",
    ),
    ("speechlm talk runs/demo/bundle --record talks/first", "and keep both sides"),
)
SECTIONS = ()


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        nargs="?",
        help="a folder that 'speechlm train' wrote, or a hub id",
    )
    parser.add_argument("--input", type=Path, metavar="FILE", help="what you say, as a recording")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="what it says, as long; needs --input"
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FOLDER",
        help="keep both sides: input.wav, output.wav, stereo.wav, events.jsonl, timeline.png",
    )
    parser.add_argument(
        "--turns",
        default="openai",
        metavar="PRESET",
        help="when a turn has ended: openai (half a second of silence), pipecat, quick, patient, "
        "semantic (%(default)s)",
    )
    parser.add_argument(
        "--history",
        type=int,
        default=0,
        metavar="N",
        help="earlier questions and answers that the model sees (%(default)s: it was trained on "
        "single ones)",
    )
    render.add_live_sampling(parser)
    render.add_weights(parser)
    devices = parser.add_argument_group("sound card")
    devices.add_argument("--devices", action="store_true", help="list devices and exit")
    devices.add_argument("--microphone", metavar="NAME", help="number or part of its name")
    devices.add_argument("--speaker", metavar="NAME", help="number or part of its name")
    devices.add_argument(
        "--speakers", action="store_true", help="no headphones: do not listen while it speaks"
    )


def run(args: Namespace) -> None:
    if args.devices:
        from speechlm.dialogue.devices import list_devices

        print(list_devices())
        return
    if args.bundle is None:
        raise ConfigError("expected a bundle to talk with, e.g. 'speechlm talk runs/demo/bundle'")
    if args.output is not None and args.input is None:
        raise ConfigError("--output goes with --input, the recording that is to be answered")
    if args.input is not None and args.output is None and args.record is None:
        raise ConfigError("expected --output FILE or --record FOLDER for what it says to --input")
    dialogue = _talk(args)
    if args.output is not None:
        from speechlm.audio import save_audio

        save_audio(args.output, dialogue.output, dialogue.sample_rate)
        print(f"{args.output}: {len(dialogue.output) / dialogue.sample_rate:.2f} s")
    if args.record is not None:
        from speechlm.dialogue.recorded import write_dialogue

        write_dialogue(args.record, dialogue)
        print(f"both sides are in {args.record}")


def _talk(args: Namespace) -> Dialogue:
    from speechlm.audio import load_audio
    from speechlm.bundle import SpeechLM
    from speechlm.dialogue.devices import DeviceUser, sound_card
    from speechlm.dialogue.running import choose_threads, warm_up
    from speechlm.dialogue.settings import SessionSettings, turn_preset
    from speechlm.dialogue.simulate import rate_for, simulate
    from speechlm.dialogue.users import RecordedUser

    turns = turn_preset(args.turns)
    bundle = SpeechLM.from_pretrained(args.bundle)
    bundle.weights = args.weights
    choose_threads(bundle)
    rate = rate_for(bundle)
    settings = SessionSettings(
        input_rate=rate,
        output_rate=rate,
        turns=turns,
        sampling=render.live_sampling(args),
        seed=args.seed,
        history_turns=args.history,
    )
    if args.input is not None:
        recorded = RecordedUser(load_audio(args.input, rate))
        recorded.patient = True
        return simulate(bundle, recorded, settings, on_event=_tell)
    warm_up(bundle)
    user = DeviceUser(rate, gate=args.speakers)
    signal.signal(signal.SIGINT, lambda *_: user.hang_up())
    with sound_card(user, rate, args.microphone, args.speaker):
        print("speak; Ctrl-C ends it", file=sys.stderr)
        return simulate(
            bundle,
            user,
            settings,
            real_time=True,
            on_heard=user.play,
            on_event=_tell,
            keep=args.record is not None,
        )


def _tell(event: Event) -> None:
    """A line for what a person wants to know while they talk."""
    from speechlm.dialogue.messages import (
        Backchannel,
        Committed,
        ResponseEnded,
        SpeechStarted,
        Text,
    )

    match event:
        case SpeechStarted():
            line = "you speak"
        case Committed():
            line = f"you said {event.duration_s:.1f} s"
        case Backchannel():
            line = "you agreed; it goes on"
        case ResponseEnded():
            cut = " and was stopped" if event.status == "cancelled" else ""
            line = f"it said {event.said_s:.1f} s{cut}"
        case Text():
            line = f"it says: {event.delta}"
        case _:
            return
    print(line, file=sys.stderr, flush=True)
