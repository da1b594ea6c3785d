"""What a run is: a checkpoint goes on only with what it was begun with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from speechlm.config import RunConfig
from speechlm.errors import CheckpointError, FingerprintError
from speechlm.files import read_json, write_json

IDENTITY_NAME = "run.json"
FREE_TO_CHANGE = {"validate_every", "checkpoint_every", "keep_checkpoints", "report_every"}
"""Keys of ``train`` that change nothing of what is learnt."""
NAMED_BY_CONTENT = {"text_lm", "text_tokenizer"}
"""Keys that say where something lies; a fingerprint says what it is."""


def identity_of(
    config: RunConfig, *, vocabulary: str, units: str, text_lm: str | None, num_processes: int
) -> dict[str, Any]:
    """All that decides the losses of a run, by name.

    Args:
        config: The run's.
        vocabulary: Fingerprint of the vocabulary.
        units: Fingerprint of the sequences trained on.
        text_lm: Fingerprint of the text LM that the run starts from, wherever it lies.
        num_processes: Processes that share every step.
    """
    shared = {
        f"{section}.{name}": value
        for section in ("layout", "model")
        for name, value in asdict(getattr(config, section)).items()
        if name not in NAMED_BY_CONTENT
    }
    train = {
        f"train.{name}": list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config.train).items()
        if name not in FREE_TO_CHANGE
    }
    return {
        "vocabulary": vocabulary,
        "units": units,
        "text_lm": text_lm,
        "num_processes": num_processes,
        "seed": config.seed,
        **shared,
        **train,
    }


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was begun with something else.

    Raises:
        FingerprintError: Another vocabulary, other units or another text LM.
        CheckpointError: Another shape, setting or number of processes.
    """
    try:
        begun = read_json(folder / IDENTITY_NAME)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds checkpoints but no {IDENTITY_NAME}; expected a folder that "
            "'speechlm train' wrote: give another output, or delete that folder"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / IDENTITY_NAME} cannot be read: {error}") from error
    for name in ("vocabulary", "units", "text_lm"):
        if begun.get(name) != identity[name]:
            raise FingerprintError(
                part=f"the checkpoint in {folder}",
                expected=str(begun.get(name)),
                got=str(identity[name]),
                remedy="give another output=FOLDER, or delete that one to train anew",
            )
    for name in sorted({*begun, *identity}):
        if begun.get(name) != identity.get(name):
            raise CheckpointError(
                f"the checkpoint in {folder} was made with {name}={begun.get(name)!r}, but "
                f"{identity.get(name)!r} was given; set it back, give another output=FOLDER, "
                "or delete that one to train anew"
            )


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    write_json(folder / IDENTITY_NAME, dict(identity))
