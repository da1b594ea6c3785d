from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from speechlm.errors import ConfigError
from speechlm.evaluation.signal.scorers import SCORERS
from speechlm.evaluation.signal.versa import SCORER_OF, read_versa_config, versa_line

# In the form of VERSA's own examples.
CONFIG = """\
# a comment
- name: mcd_f0
  f0min: 40
  dtw: false
- name: signal_metric
- name: stoi
- name: estoi
- name: pseudo_mos
  predictor_types: ["utmos", "dnsmos", "singmos"]
  predictor_args:
    utmos:
      fs: 16000
- name: speaker
  model_tag: default
- name: whisper_wer
- name: visqol
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "versa.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_configuration_names_scorers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_versa_config(write(tmp_path, CONFIG)) == [
        *("mcd_f0", "si_sdr", "stoi", "utmos", "dnsmos", "singmos"),
        *("speaker", "error_rates", "visqol"),
    ]
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("yaml: ")[2] for line in said] == [
        "mcd_f0: parameters are fixed here, not used: dtw, f0min",
        "speaker: parameters are fixed here, not used: model_tag",
    ]


def test_predictors_have_versas_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "- name: pseudo_mos\n")
    assert read_versa_config(path) == ["utmos", "dnsmos", "plcmos"]


def test_every_scorer_can_be_named() -> None:
    assert set(SCORER_OF.values()) == set(SCORERS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: stoi", "expected a list of '- name: METRIC', got {'name': 'stoi'}"),
        ("", "expected a list of '- name: METRIC', got None"),
        ("- stoi", "expected '- name: METRIC', got 'stoi'"),
        ("- name: pseudo_mos\n  predictor_types: utmos", "a list of names, got 'utmos'"),
        ("- name: [", "expected a configuration of VERSA"),
    ],
)
def test_what_is_no_configuration_is_refused_in_a_line(
    text: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        read_versa_config(write(tmp_path, text))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="expected a configuration of VERSA"):
        read_versa_config(tmp_path / "missing.yaml")


def test_scores_are_a_json_line_in_versas_names() -> None:
    line = versa_line(
        "a/b.wav",
        {"mcd13_c0": 5.5, "f0_rmse_hz": math.nan, "nisqa_mos": 3.1, "stoi": 0.9, "note": "é"},
    )
    assert "\n" not in line
    assert json.loads(line) == {
        "key": "a/b.wav",
        "mcd": 5.5,
        "f0rmse": None,
        "nisqa_mos_pred": 3.1,
        "stoi": 0.9,
        "note": "é",
    }
