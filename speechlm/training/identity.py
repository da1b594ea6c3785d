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
FREE_TO_CHANGE = {
    *("validate_every", "checkpoint_every", "keep_checkpoints", "report_every"),
    "cache_gb",
}
"""Keys that change nothing of what is learnt."""
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
    return {
        "vocabulary": vocabulary,
        "units": units,
        "text_lm": text_lm,
        "num_processes": num_processes,
        **_settings(config, "layout", "model", "train"),
    }


def identity_of_part(
    config: RunConfig, *, tokenizer: str | None, recordings: str, num_processes: int
) -> dict[str, Any]:
    """The same for a tokenizer or vocoder.

    Args:
        config: The run's.
        tokenizer: Fingerprint of the tokenizer that a vocoder renders; None for a tokenizer.
        recordings: Fingerprint of the recordings trained on.
        num_processes: Processes that share every step.
    """
    section = config.train.part
    return {
        "tokenizer": tokenizer,
        "recordings": recordings,
        "num_processes": num_processes,
        f"{section}.name": getattr(config, section).name,
        f"{section}.options": getattr(config, section).options,
        **_settings(config, "segments", "train"),
    }


def _settings(config: RunConfig, *sections: str) -> dict[str, Any]:
    """The keys of some sections that decide what is learnt."""
    values = {
        f"{section}.{name}": list(value) if isinstance(value, tuple) else value
        for section in sections
        for name, value in asdict(getattr(config, section)).items()
        if name not in FREE_TO_CHANGE | NAMED_BY_CONTENT
    }
    return {"seed": config.seed, **values}


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was begun with something else.

    Raises:
        FingerprintError: Another vocabulary, text LM or tokenizer, other units or recordings.
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
    for name in ("vocabulary", "units", "text_lm", "tokenizer", "recordings"):
        if begun.get(name) != identity.get(name):
            raise FingerprintError(
                part=f"the checkpoint in {folder}",
                expected=str(begun.get(name)),
                got=str(identity.get(name)),
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
