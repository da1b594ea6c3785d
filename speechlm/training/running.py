"""Running a fairseq2 recipe in this process: its environment, its errors, and how it stops."""

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
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from speechlm.config import TrainConfig
from speechlm.errors import CheckpointError, ConfigError, PartialFailure, PluginError
from speechlm.progress import say

if TYPE_CHECKING:
    from fairseq2.trainer import Trainer


class RunnableRecipe(Protocol):
    """A fairseq2 recipe that tells its trainer, once there is one."""

    trainer: Trainer | None


def choose_device(wanted: str) -> str:
    """``train.device`` as torch names it.

    Raises:
        ConfigError: It is no device, or there is no such one here.
    """
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


def choose_dtype(config: TrainConfig, device: str) -> torch.dtype:
    """``train.dtype``, or the fastest that the device computes in."""
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
def surroundings(device: str) -> Iterator[None]:
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


def run_recipe(recipe: RunnableRecipe, settings: object, folder: Path) -> None:
    """Run a recipe in ``folder`` from its last checkpoint to its end.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        PartialFailure: Stopped by Ctrl-C or SIGTERM, or the disk is full; a rerun goes on.
    """
    from fairseq2.checkpoint import CheckpointError as FairseqCheckpointError
    from fairseq2.checkpoint import CheckpointNotFoundError
    from fairseq2.error import OperationalError
    from fairseq2.recipe.run import run
    from fairseq2.task import TaskStopException

    try:
        with _stop_on_signals(recipe):
            run(
                cast(Any, recipe),
                settings,
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
def _stop_on_signals(recipe: RunnableRecipe) -> Iterator[None]:
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
