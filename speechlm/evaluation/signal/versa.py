"""VERSA's files: its configuration chooses scorers here, and scores are written in its form.

A configuration is a YAML list of ``- name: ...`` with parameters; results are JSON lines with
``key`` and a score a name. Names are VERSA's, definitions are those of this project where they
differ: ``mcd`` here is :mod:`speechlm.evaluation.signal.cepstra`'s ``mcd13_c0``.

Source:
    Shi et al. 2025 (VERSA), arXiv:2412.17667.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from speechlm.errors import ConfigError
from speechlm.evaluation.signal.nisqa import FIGURES as NISQA_FIGURES
from speechlm.evaluation.signal.scorers import SCORERS
from speechlm.progress import say

CONFIG_NAME = "versa.yaml"
"""Beside recordings, it chooses what is measured on them."""
RESULTS_NAME = "versa.jsonl"

SCORER_OF: Mapping[str, str] = {
    "mcd_f0": "mcd_f0",
    "mcd": "mcd_f0",
    "pesq": "pesq",
    "stoi": "stoi",
    "estoi": "stoi",
    "speaker": "speaker",
    "spk_similarity": "speaker",
    "speaker_similarity": "speaker",
    "signal_metric": "si_sdr",
    "utmos": "utmos",
    "dnsmos": "dnsmos",
    "plcmos": "plcmos",
    **{
        f"{recognizer}_wer": "error_rates"
        for recognizer in ("espnet", "owsm", "whisper", "fwhisper", "nemo", "hubert")
    },
    **{name: name for name in SCORERS},
}
"""Which scorer does what VERSA has by a name; whatever recognizer it names, ours hears."""
SEVERAL = "pseudo_mos"
"""Its parameter ``predictor_types`` names several."""
PREDICTORS = ("utmos", "dnsmos", "plcmos")
"""Those that it stands for without that."""

NAMES: Mapping[str, str] = {
    "mcd13_c0": "mcd",
    "f0_rmse_hz": "f0rmse",
    "f0_corr": "f0corr",
    "dnsmos_ovrl": "dns_overall",
    "dnsmos_p808": "dns_p808",
    "si_sdr": "si_snr",
    **{f"nisqa_{name}": f"nisqa_{name}_pred" for name in NISQA_FIGURES},
}
"""What VERSA calls figures that are called otherwise here."""


def read_versa_config(path: Path) -> list[str]:
    """The scorers that a configuration of VERSA asks for, each once, in its order.

    What is not in :data:`SCORER_OF` is given as it stands, for the caller to say that there is
    no such scorer. Parameters are not used; a line says so.

    Raises:
        ConfigError: It is missing, no YAML, or no list of names.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: expected a configuration of VERSA ({reason})") from error
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: expected a list of '- name: METRIC', got {entries!r:.60}")
    wanted: list[str] = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ConfigError(f"{path}: expected '- name: METRIC', got {entry!r:.60}")
        name = entry["name"]
        unused = sorted(set(map(str, entry)) - {"name", "predictor_types", "predictor_args"})
        if unused:
            say(f"{path}: {name}: parameters are fixed here, not used: {', '.join(unused)}")
        wanted += _predictors(path, entry) if name == SEVERAL else [name]
    return list(dict.fromkeys(SCORER_OF.get(name, name) for name in wanted))


def _predictors(path: Path, entry: Mapping[str, Any]) -> list[str]:
    names = entry.get("predictor_types", list(PREDICTORS))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: expected predictor_types: a list of names, got {names!r:.60}")
    return names


def versa_line(key: str, scores: Mapping[str, float | str]) -> str:
    """A line of results, without its end.

    Args:
        key: The recording's.
        scores: By the names of this project. What is not finite becomes null.
    """
    row: dict[str, Any] = {"key": key}
    for name, score in scores.items():
        broken = isinstance(score, float) and not math.isfinite(score)
        row[NAMES.get(name, name)] = None if broken else score
    return json.dumps(row, ensure_ascii=False)
