"""``speechlm train``: from a unit store to a trained unit LM, resumable at every moment."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speechlm.config import RunConfig, TrainConfig
from speechlm.data.store import UnitStore
from speechlm.errors import (
    CheckpointError,
    ConfigError,
    FingerprintError,
    PartialFailure,
    PluginError,
)
from speechlm.model.unit_lm import UnitLM
from speechlm.parts import CONFIG_NAME
from speechlm.plugins import load_tokenizer
from speechlm.progress import say
from speechlm.training.content import ContentPlan
from speechlm.training.identity import (
    check_identity,
    identity_of,
    write_identity,
)
from speechlm.training.lora import import_peft, merge_lora
from speechlm.training.sequences import SequenceSet
from speechlm.training.start import Language, Start, choose_language, choose_start

if TYPE_CHECKING:
    from speechlm.training.recipe import UnitLMRecipe


def train(config: RunConfig) -> None:
    """Train the unit LM of a run and write it to ``config.train_path / "lm"``.

    A run that was stopped or killed goes on from its last checkpoint and has the losses of
    one that was not; a finished one is left as it is. Under ``torchrun`` the processes share
    every step.

    Raises:
        PluginError: fairseq2, or peft for LoRA, is not installed.
        ConfigError: The layout or the head does not fit the store.
        InputError: The layout needs text, or what a store does not hold.
        CorpusError: The unit store is missing, partial, or holds nothing to train on.
        FingerprintError: The tokenizer is not the store's, or a checkpoint is of another
            vocabulary or other units.
        CheckpointError: A checkpoint is of another shape or setting, or cannot be read.
        PartialFailure: Stopped by Ctrl-C or SIGTERM, or the disk is full; a rerun goes on.
    """
    folder = config.train_path
    store = UnitStore.open(config.store_path)
    language = choose_language(config, store)
    features = _unit_features(config.tokenizer_path, store.fingerprint)
    if config.train.lora_rank:
        import_peft()
    start = choose_start(config, language, features)
    sequences, valid = (
        _sequences(config, store, language, start, split) for split in ("train", "valid")
    )
    sequences.check_not_empty(config.store_path)
    identity = identity_of(
        config,
        vocabulary=language.vocabulary.fingerprint,
        units=sequences.fingerprint(),
        text_lm=start.text_lm,
        num_processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    finished = (folder / "lm" / CONFIG_NAME).is_file()
    if finished or any((folder / "checkpoints").glob("step_*[0-9]")):
        check_identity(folder, identity)
    leader = os.environ.get("RANK", "0") == "0"
    if finished:
        if leader:
            say(f"{folder / 'lm'} is trained already; delete {folder} to train anew")
        return
    device = _device(config.train.device)
    dtype = _dtype(config.train, device)

    with _surroundings(device):
        import_fairseq2()
        from speechlm.training.recipe import UnitLMRecipe, last_checkpoint

        resumed = last_checkpoint(folder / "checkpoints")
        if leader:
            write_identity(folder, identity)
            _announce(sequences, valid, config.train, device, dtype, resumed)
        recipe = UnitLMRecipe(
            config, train=sequences, valid=valid, start=start, first_step=resumed + 1
        )
        del start  # the recipe lets go of the text LM's weights once they are in the model
        _run(recipe, config, dtype)
    if leader:
        assert recipe.decoder is not None
        if config.train.lora_rank:
            merge_lora(recipe.decoder)
        lm = UnitLM(recipe.decoder, language.vocabulary, language.layout, language.text_tokenizer)
        lm.save(folder / "lm")
        say(f"trained: {folder / 'lm'}")


def _sequences(
    config: RunConfig, store: UnitStore, language: Language, start: Start, split: str
) -> SequenceSet:
    layout = language.train_layout if split == "train" else language.layout
    plan = ContentPlan(
        layout,
        num_codebooks=store.num_codebooks,
        text_tokenizer=language.text_tokenizer,
        spans=config.layout.spans,
    )
    return SequenceSet.of_split(
        store,
        layout,
        language.vocabulary,
        plan,
        split,
        max_length=min(start.shape.max_positions, config.train.batch_units),
    )


def _unit_features(tokenizer_path: Path, expected: str) -> Tensor | None:
    """What each unit sounds like, where the run has the tokenizer and that one knows."""
    if not tokenizer_path.is_dir():
        return None
    tokenizer = load_tokenizer(tokenizer_path)
    if tokenizer.fingerprint != expected:
        raise FingerprintError(
            part="the unit store",
            expected=expected,
            got=tokenizer.fingerprint,
            remedy="run 'speechlm tokenize' again with this tokenizer",
        )
    features: Tensor | None = getattr(tokenizer, "unit_features", None)
    return features


def _device(wanted: str) -> str:
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("train.device is 'cuda', but torch sees no GPU; use train.device=cpu")
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        return str(torch.device(wanted))
    except RuntimeError:
        raise ConfigError(
            f"train.device: expected 'cpu', 'cuda' or 'auto', got {wanted!r}"
        ) from None


def _dtype(config: TrainConfig, device: str) -> torch.dtype:
    if config.dtype != "auto":
        return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def import_fairseq2() -> None:
    """Import fairseq2 without needing a system package.

    It asks the loader for ``libsndfile.so.1``; the soundfile wheel carries one of that name,
    and once a library of a name is loaded, the loader gives that one.
    """
    import soundfile

    # Where the wheel carries none, soundfile found the system's, and so does fairseq2.
    for library in Path(soundfile.__file__).parent.glob("_soundfile_data/libsndfile*.so"):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    try:
        import fairseq2  # noqa: F401
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise PluginError(
            f"training needs a package that is missing ({error}): pip install 'speechlm[train]'"
        ) from error


@contextmanager
def _surroundings(device: str) -> Iterator[None]:
    """Let fairseq2 have its way with the environment, logging and warnings, then undo it."""
    environment = dict(os.environ)
    root = logging.getLogger()
    handlers, level, propagate = root.handlers[:], root.level, root.propagate
    os.environ["FAIRSEQ2_DEVICE"] = device
    # It would write all environment variables, and what is secret in them, into a log file.
    logging.getLogger("fairseq2").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.showwarning = lambda *_, **__: None  # its own filter comes before ours
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for handler in logging.getLogger("fairseq2").handlers[:]:
            logging.getLogger("fairseq2").removeHandler(handler)
            handler.close()
        root.handlers[:], root.propagate = handlers, propagate
        root.setLevel(level)


def _announce(
    sequences: SequenceSet,
    valid: SequenceSet,
    config: TrainConfig,
    device: str,
    dtype: torch.dtype,
    resumed: int,
) -> None:
    say(
        f"training on {sequences.num_conversations} conversations and {sequences.num_speech} "
        f"recordings alone, validating on {len(valid)}; {device}, {str(dtype)[6:]}"
    )
    for part, name in ((sequences, "train"), (valid, "valid")):
        for line in part.describe_left_out():
            say(f"{name}: {line}")
    if resumed:
        say(f"going on from step {resumed} of {config.max_steps}")


def _run(recipe: UnitLMRecipe, config: RunConfig, dtype: torch.dtype) -> None:
    from fairseq2.checkpoint import CheckpointError as FairseqCheckpointError
    from fairseq2.checkpoint import CheckpointNotFoundError
    from fairseq2.error import OperationalError
    from fairseq2.recipe.run import run
    from fairseq2.task import TaskStopException

    from speechlm.training.recipe import recipe_settings

    folder = config.train_path
    try:
        with _stop_on_signals(recipe):
            run(
                recipe,
                recipe_settings(config, dtype),
                folder / "fairseq2",
                checkpoint_dir=folder / "checkpoints",
                no_rich=True,
                no_progress=True,
            )
    except (TaskStopException, KeyboardInterrupt) as error:
        step = 0 if recipe.trainer is None else recipe.trainer.step_nr
        raise PartialFailure(
            f"training was stopped at step {step}; run the same command again to go on"
        ) from error
    except (FairseqCheckpointError, CheckpointNotFoundError) as error:
        broken = folder / "checkpoints" / f"step_{error.step_nr}"
        raise CheckpointError(
            f"{broken} cannot be read ({error}); delete it, and a rerun goes on from the "
            "checkpoint before it"
        ) from error
    except (OperationalError, OSError) as error:
        raise PartialFailure(
            f"training failed ({error.__cause__ or error}); mend that, and run the same command "
            "again to go on from the last checkpoint"
        ) from error


@contextmanager
def _stop_on_signals(recipe: UnitLMRecipe) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, finish the step and save; on a second one, leave at once.

    Several processes cannot agree on a step that quickly: they leave at once.
    """
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or recipe.trainer is None or "WORLD_SIZE" in os.environ:
            raise KeyboardInterrupt
        asked = True
        say("stopping after this step; once more to stop at once")
        # fairseq2 0.8.1 heeds a stop request only where there is no limit of steps.
        recipe.trainer._max_num_steps = None
        recipe.trainer.request_stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
