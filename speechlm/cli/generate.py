"""Answer or continue recordings with a trained bundle: audio files in, WAV files out.

With --mode reply (the default) each recording is a question and the answer is written. With
--mode continue the model goes on speaking from the recording; the file holds only what it
added. A line for each file says how long it is, how long the wait for the first sound of a live
reply was, and the real-time factor: the time it took by its length.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import fields
from typing import TYPE_CHECKING

from speechlm.cli import render
from speechlm.config import SamplingConfig

if TYPE_CHECKING:
    from torch import Tensor

    from speechlm.bundle import SpeechLM

EXAMPLES = (
    ("speechlm generate runs/demo/bundle question.wav -o answer.wav", "one answer"),
    (
        "speechlm generate runs/demo/bundle questions/ -o answers/ --keep-going",
        "a folder of them, whatever single files hold",
    ),
    (
        "speechlm generate runs/demo/bundle story.flac --mode continue --prompt-seconds 3 "
        "--temperature 0.8 --seed 7",
        "three seconds, continued",
    ),
)
SECTIONS = ()


def add_arguments(parser: ArgumentParser) -> None:
    render.add_arguments(parser, output="generated")
    defaults = SamplingConfig()
    parser.add_argument(
        "--mode", choices=("reply", "continue"), default="reply", help="default: %(default)s"
    )
    parser.add_argument(
        "--prompt-seconds",
        type=positive,
        metavar="S",
        help="with --mode continue: take only the first S seconds of each recording",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=defaults.temperature,
        help="0 takes the most probable unit, 1 draws as the model believes (%(default)s)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=defaults.top_k,
        help="draw among the K most probable units, 0 for all (%(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=defaults.top_p,
        help="draw among the most probable units that together hold P (%(default)s)",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=defaults.min_p,
        help="draw among units at least P times as probable as the first (%(default)s)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=defaults.repetition_penalty,
        help="above 1: units that came already are less probable (%(default)s)",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=defaults.guidance,
        help="above 1: away from what follows no prompt at all (%(default)s)",
    )
    parser.add_argument(
        "--window",
        type=int,
        default=defaults.window,
        help="remember so many positions and go on beyond the context, 0: end there (%(default)s)",
    )
    parser.add_argument(
        "--max-units",
        type=int,
        default=defaults.max_units,
        help="longest output, in units (%(default)s)",
    )
    render.add_weights(parser)


def positive(text: str) -> float:
    """Read a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def run(args: Namespace) -> None:
    sampling = SamplingConfig(**{f.name: getattr(args, f.name) for f in fields(SamplingConfig)})

    def speak(model: SpeechLM, wave: Tensor) -> Tensor:
        model.weights = args.weights
        rate = model.tokenizer.sample_rate
        if args.mode == "reply":
            return model.reply(wave, rate, sampling=sampling, seed=args.seed)
        if args.prompt_seconds is not None:
            wave = wave[: round(args.prompt_seconds * rate)]
        return model.continue_speech(wave, rate, sampling=sampling, seed=args.seed)

    def first_sound(model: SpeechLM, wave: Tensor) -> Tensor | None:
        model.weights = args.weights
        rate = model.tokenizer.sample_rate
        return next(model.reply_stream(wave, rate, sampling=sampling, seed=args.seed), None)

    from speechlm.bundle import SpeechLM

    render.render(
        args,
        lambda: SpeechLM.from_pretrained(args.bundle),
        speak,
        first_sound if args.mode == "reply" else None,
    )
