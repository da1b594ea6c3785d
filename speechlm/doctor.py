"""What this machine is, what is installed, and so what can and cannot run."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from speechlm import __version__

EXTRAS = {
    "espeakng_loader": "corpus",
    "fairseq2": "train",
    "matplotlib": "evaluate",
    "onnxruntime": "serve",
    "pocketsphinx": "evaluate",
    "silero_vad": "serve",
    "sounddevice": "talk",
    "sphn": "moshi",
    "starlette": "serve",
    "tensorboard": "train",
    "uvicorn": "serve",
}
"""Packages that are not always installed, and the extra of speechlm that brings each."""

PACKAGES = (
    *("torch", "torchaudio", "transformers", "fairseq2", "lhotse", "soundfile", "pyarrow"),
    *("espeakng-loader", "pocketsphinx", "matplotlib", "tensorboard"),
)
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
"""What decides how fast the language model is, and whether bfloat16 helps."""

MIN_FREE_DISK_GB = 3.0
MIN_MEMORY_GB = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ability:
    """Whether a command can run here."""

    command: str
    ready: bool
    reason: str = ""
    """What stands in its way; empty when nothing does."""
    remedy: str = ""
    """What to do about it."""


def remedy(module: str) -> str:
    """How to install a package by the name it is imported by."""
    return (
        f"pip install 'speechlm[{EXTRAS[module]}]'" if module in EXTRAS else f"pip install {module}"
    )


def repair(package: str) -> str:
    """What to do about a package that is there but cannot be imported."""
    if package in ("torch", "torchaudio"):
        return "install both of one release, e.g. pip install 'torch==2.11.*' 'torchaudio==2.11.*'"
    if package == "sounddevice":
        return "install PortAudio, e.g. apt-get install libportaudio2"
    return f"pip install --force-reinstall {package}"


def examine(folder: Path) -> dict[str, Any]:
    """Look at this machine, with ``folder`` as the place that runs are written to."""
    while not folder.exists():
        folder = folder.absolute().parent
    return {
        "speechlm": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: version(name) for name in PACKAGES},
        "cpu": {"name": cpu_name(), "cores": usable_cores(), "features": cpu_features()},
        "devices": devices(),
        "memory_gb": memory_gb(),
        "disk": {"folder": str(folder), "free_gb": shutil.disk_usage(folder).free / 1e9},
    }


def abilities(found: dict[str, Any]) -> list[Ability]:
    """What can run, given what :func:`examine` found; the packages are tried for real."""
    core = _try("torch", "torchaudio.functional", "soundfile", "lhotse", "pyarrow.parquet")
    rows = [
        _ability("fit, tokenize, generate, resynthesize", core),
        _ability("corpus", core, _try("espeakng_loader")),
        _ability("train", core, _try_fairseq2()),
        _ability("evaluate", core, _try("pocketsphinx", "matplotlib")),
    ]
    lacks = next((row for row in rows if not row.ready), None)
    rows.append(
        Ability(
            command="demo", ready=False, reason=f"{lacks.command} cannot run", remedy=lacks.remedy
        )
        if lacks
        else Ability(command="demo", ready=True)
    )
    listening = _try("onnxruntime"), _lacks("silero_vad")
    rows.append(_ability("simulate, talk from file to file", core, *listening))
    rows.append(_ability("talk", core, *listening, _try("sounddevice")))
    rows.append(_ability("serve", core, *listening, _try("starlette", "uvicorn")))
    free, memory = found["disk"]["free_gb"], found["memory_gb"]["available"]
    if free < MIN_FREE_DISK_GB:
        rows.append(_short("disk", f"{free:.1f} GB free", MIN_FREE_DISK_GB, "free some"))
    if memory is not None and memory < MIN_MEMORY_GB:
        rows.append(_short("memory", f"{memory:.1f} GB free", MIN_MEMORY_GB, "close something"))
    return rows


def version(distribution: str) -> str | None:
    """The version that is installed, None where it is not."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """The versions of speechlm and of the packages that it builds on, as far as they are there."""
    found = {name: version(name) for name in PACKAGES}
    return {
        "speechlm": __version__,
        **{name: known for name, known in found.items() if known is not None},
    }


def cpu_name() -> str:
    """The processor as its maker calls it."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Those of ``CPU_FEATURES`` that the processor has; none where the system does not say."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith(("flags", "Features")):
            flags = set(line.partition(":")[2].split())
            return [feature for feature in CPU_FEATURES if feature in flags]
    return []


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gb() -> dict[str, float | None]:
    """Memory of the machine, and what of it is free; None where the system does not say."""
    found = {
        line.partition(":")[0]: int(line.split()[1]) * 1024 / 1e9
        for line in _lines(Path("/proc/meminfo"))
        if line.startswith(("MemTotal", "MemAvailable"))
    }
    total = found.get("MemTotal")
    if total is None and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {"total": total, "available": found.get("MemAvailable")}


def devices() -> list[str]:
    """What torch can compute on."""
    if _try("torch"):
        return []
    import torch

    gpus = [
        f"cuda:{index} {torch.cuda.get_device_name(index)}"
        for index in range(torch.cuda.device_count())
    ]
    return ["cpu", *gpus]


def _try(*modules: str) -> tuple[str, str] | None:
    """Import ``modules``; None, or why the first failing one fails and how to mend it."""
    for module in modules:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import_module(module)
        except Exception as error:  # a broken package may raise anything
            package = module.partition(".")[0]
            if isinstance(error, ModuleNotFoundError) and error.name:
                lacks = error.name.partition(".")[0]
                return f"{lacks} is not installed", remedy(lacks)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return f"{package} cannot be imported ({reason})", repair(package)
    return None


def _lacks(module: str) -> tuple[str, str] | None:
    """As :func:`_try` where importing would change how torch computes."""
    return None if find_spec(module) else (f"{module} is not installed", remedy(module))


def _try_fairseq2() -> tuple[str, str] | None:
    """As :func:`_try`, by the way that training goes: it brings fairseq2 a library it needs."""
    missing = _try("speechlm.training.train", "tensorboard")
    if missing:
        return missing
    from speechlm.training.running import import_fairseq2

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_fairseq2()
    except Exception as error:  # also of the wrong torch, or a library of the system
        if version("fairseq2") is None:
            return "fairseq2 is not installed", remedy("fairseq2")
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return f"fairseq2 cannot be imported ({reason})", remedy("fairseq2")
    return None


def _ability(command: str, *obstacles: tuple[str, str] | None) -> Ability:
    for obstacle in obstacles:
        if obstacle:
            return Ability(command=command, ready=False, reason=obstacle[0], remedy=obstacle[1])
    return Ability(command=command, ready=True)


def _short(what: str, have: str, least: float, advice: str) -> Ability:
    reason = f"{have}, runs like the demo want {least:.0f} GB"
    return Ability(command=what, ready=False, reason=reason, remedy=advice)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
