"""The whole chain on a small world, from nothing to a report.

Runs the public commands below in order on configs/demo.yaml, each printed before it runs so
that it can be copied. A finished step is not done again; a stopped one resumes. It ends with
report.html, report.json and the bundle, a SpeechLM that answers spoken questions. With another
tokenizer or vocoder it trains that first, where it must be, by the configuration of its name.
"""

from __future__ import annotations

import hashlib
import shlex
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechlm.cli.main import FAILED
from speechlm.config import RunConfig, load_config
from speechlm.errors import InputError, PartialFailure, SpeechLMError
from speechlm.files import read_json, write_json
from speechlm.presets import preset

EXAMPLES = (
    ("speechlm demo", "everything, about a quarter of an hour on two cores"),
    ("speechlm demo --short", "a smaller world and a few minutes, to see that all of it works"),
    (
        "speechlm demo vocoder.name=unit-vocos vocoder.options.speaker_dim=256",
        "with a vocoder that is trained for three minutes, and sounds better",
    ),
    (
        "speechlm demo output=runs/codec tokenizer.name=causal-codec layout.name=delay",
        "the same on a codec that is trained first",
    ),
    ("speechlm demo output=/data/demo train.max_steps=4000", "elsewhere, trained for longer"),
)
SECTIONS = (
    *("corpus", "tokenizer", "tokenize", "layout", "model", "train", "vocoder", "generate"),
    "evaluate",
)

STAGES = ("corpus", "fit", "tokenize", "train", "evaluate")
COMMAND_OF = {"tokenizer": "train", "vocoder": "train"}
"""Which command a stage is, where that is not its name."""
ORDER = ("corpus", "fit", "tokenizer", "tokenize", "vocoder", "train", "evaluate")
DEMO_VOCODER = "demo-vocoder"
"""The configuration of a vocoder that is trained for a few minutes."""
SHORT_STEPS = 100
"""What the short form trains a tokenizer or vocoder for."""
SECONDS_NAME = "seconds.json"
"""Seconds that each finished stage took, which the report shows."""
STATE_NAME = "demo.json"
"""What was run, so that a rerun knows what is done."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.usage = "%(prog)s [--short] [key=value ...]"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for other commands")
    parser.add_argument("--short", action="store_true", help="run configs/demo-short.yaml")


def run(args: Namespace) -> None:
    path = preset("demo-short" if args.short else "demo")
    overrides = [*implied(load_config(path, args.overrides)), *args.overrides]
    config = load_config(path, overrides)
    for stage in plan(config, path, overrides, short=args.short):
        run_stage(stage, config)
    print()
    for name in ("report.html", "report.json", config.bundle_path.name):
        print(config.output / name)
    print(
        f"ask it something: {shlex.join([*program(), 'generate', str(config.bundle_path)])} "
        "QUESTION.wav -o ANSWER.wav"
    )


def implied(config: RunConfig) -> list[str]:
    """What follows from a tokenizer that brings no vocoder: one is trained for its units.

    Raises:
        PluginError: The tokenizer is not known.
    """
    from speechlm.plugins import AUTO, TOKENIZERS, plugin

    named = config.vocoder.path is not None or config.vocoder.name != AUTO
    if named or config.tokenizer.path is not None:
        return []
    if hasattr(plugin(TOKENIZERS, config.tokenizer.name), "default_vocoder"):
        return []
    trained = load_config(preset(DEMO_VOCODER)).vocoder
    return [f"vocoder.name={trained.name}", f"vocoder.options={trained.options}"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One command of the demo."""

    name: str
    """As the record of what is done knows it."""
    words: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        return [*program(), COMMAND_OF.get(self.name, self.name), *self.words]


def plan(
    config: RunConfig, path: Path, overrides: Sequence[str], *, short: bool = False
) -> list[Stage]:
    """The commands of a run, those that train a tokenizer or vocoder where it has to be.

    Args:
        config: The run.
        path: Its configuration file.
        overrides: What the command line says beside it.
        short: Whether such training is cut to :data:`SHORT_STEPS`.

    Raises:
        PluginError: The tokenizer or vocoder is not known.
    """
    from speechlm.plugins import AUTO, TOKENIZERS, VOCODERS, plugin

    stages = [Stage(name=name, words=(str(path), *overrides)) for name in STAGES]
    named = config.vocoder.path is None and config.vocoder.name != AUTO
    if named and hasattr(plugin(VOCODERS, config.vocoder.name), "training"):
        words = part_words(config, config.vocoder.name, "vocoder", overrides, short)
        stages.insert(STAGES.index("train"), Stage(name="vocoder", words=words))
    # Of a model that options name, a part can be taken without training.
    made = config.tokenizer.path is not None or "model" in config.tokenizer.options
    if not made and hasattr(plugin(TOKENIZERS, config.tokenizer.name), "training"):
        words = part_words(config, config.tokenizer.name, "tokenizer", overrides, short)
        stages[STAGES.index("fit")] = Stage(name="tokenizer", words=words)
    return stages


def part_words(
    config: RunConfig, name: str, part: str, overrides: Sequence[str], short: bool
) -> tuple[str, ...]:
    """How ``speechlm train`` trains a part inside this run: by the configuration of its name.

    ``unit-vocos`` has one of its own for the demo, of fewer steps.
    """
    is_demos = name == load_config(preset(DEMO_VOCODER)).vocoder.name
    path = preset(DEMO_VOCODER if is_demos else name)
    words = [str(path), f"output={config.output}", f"corpus.path={config.corpus_path}"]
    if part == "vocoder":
        words.append(f"tokenizer.path={config.tokenizer_path}")
    if short:
        words.append(f"train.max_steps={SHORT_STEPS}")
    # What else is said of training is meant for the language model.
    return (*words, *(word for word in overrides if word.startswith((f"{part}.", "seed="))))


def run_stage(stage: Stage, config: RunConfig) -> None:
    """Run one command unless it has finished on this very configuration, and record its time.

    Raises:
        InputError: The command said that its input cannot be used.
        PartialFailure: It failed part-way.
    """
    state_path = config.output / STATE_NAME
    state: dict[str, Any] = read_json(state_path) if state_path.is_file() else {}
    # The whole configuration: a stage reads what the ones before it made of theirs.
    key = hashlib.sha256(repr(config).encode()).hexdigest()[:16]
    record = state.get(stage.name, {})
    print(f"\n$ {shlex.join(stage.command)}", flush=True)
    if record.get("config") == key and record["finished"] and product(stage.name, config).exists():
        print(f"done already, in {record['seconds']:.0f} s", flush=True)
        return
    spent_s = record["seconds"] if record.get("config") == key and not record["finished"] else 0.0
    start = time.monotonic()
    code = FAILED
    try:
        code = execute(stage.command)
    finally:
        spent_s += time.monotonic() - start
        # A stage that changes makes those after it stale.
        kept = {name: state[name] for name in ORDER[: ORDER.index(stage.name)] if name in state}
        state = {**kept, stage.name: {"config": key, "seconds": spent_s, "finished": code == 0}}
        write_json(state_path, state)
        finished = {name: one["seconds"] for name, one in state.items() if one["finished"]}
        write_json(config.output / SECONDS_NAME, finished)
    if code:
        raise failure(stage, code)
    print(f"{stage.name}: {spent_s:.0f} s", flush=True)


def execute(command: list[str]) -> int:
    """Run a command and give its exit code; one that is stopped may finish what it is at."""
    with subprocess.Popen(command) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the command too
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def product(stage: str, config: RunConfig) -> Path:
    """What a stage leaves behind when it is done."""
    return {
        "corpus": config.corpus_path,
        "fit": config.tokenizer_path,
        "tokenizer": config.tokenizer_path,
        "vocoder": config.vocoder_path,
        "tokenize": config.store_path,
        "train": config.bundle_path,
        "evaluate": config.output / "report.html",
    }[stage]


def failure(stage: Stage, code: int) -> SpeechLMError:
    """What the demo says when a command of it failed."""
    command = COMMAND_OF.get(stage.name, stage.name)
    message = f"'speechlm {command}' ended with exit code {code}, its reason is above"
    if code == InputError.exit_code:
        return InputError(message)
    return PartialFailure(f"{message}; run the same command again to resume")


def program() -> list[str]:
    """How this very ``speechlm`` is called, as short as it can be copied."""
    script = Path(sys.executable).with_name("speechlm")
    if not script.is_file():
        return [sys.executable, "-m", "speechlm"]
    here = Path.cwd()
    return [str(script.relative_to(here) if script.is_relative_to(here) else script)]
