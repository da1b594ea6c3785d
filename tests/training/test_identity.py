from pathlib import Path
from typing import Any

import pytest

from speechlm.config import load_config
from speechlm.errors import CheckpointError, FingerprintError
from speechlm.training.identity import check_identity, identity_of, write_identity


def identity(
    *overrides: str,
    vocabulary: str = "vocabulary-1",
    units: str = "units-1",
    text_lm: str | None = None,
) -> dict[str, Any]:
    config = load_config(overrides=overrides)
    return identity_of(config, vocabulary=vocabulary, units=units, text_lm=text_lm, num_processes=1)


def test_the_same_run_goes_on_whatever_is_only_reported(tmp_path: Path) -> None:
    write_identity(tmp_path, identity())
    check_identity(tmp_path, identity())
    check_identity(
        tmp_path,
        identity("train.report_every=5", "train.checkpoint_every=7", "train.validate_every=9"),
    )


def test_a_text_lm_may_have_moved(tmp_path: Path) -> None:
    write_identity(tmp_path, identity("model.text_lm=here", text_lm="text-lm-1"))
    check_identity(tmp_path, identity("model.text_lm=there", text_lm="text-lm-1"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (identity(vocabulary="vocabulary-2"), r"'vocabulary-1', but 'vocabulary-2'"),
        (identity(units="units-2"), r"'units-1', but 'units-2'"),
        (identity(text_lm="text-lm-2"), r"'None', but 'text-lm-2'"),
    ],
)
def test_another_vocabulary_or_store_is_refused_with_both_names(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    write_identity(tmp_path, identity())
    with pytest.raises(FingerprintError, match=message):
        check_identity(tmp_path, other)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_layers=3", r"model\.num_layers=6, but 3"),
        ("train.learning_rate=0.5", r"train\.learning_rate=0\.001, but 0\.5"),
        ("seed=7", r"seed=1, but 7"),
        ("layout.name=delay", r"layout\.name='flat', but 'delay'"),
        ("layout.options.collapse=true", r"layout\.options=\{\}, but \{'collapse': True\}"),
        ("model.head=depth", r"model\.head='parallel', but 'depth'"),
    ],
)
def test_another_shape_or_setting_is_refused_with_both_values(
    tmp_path: Path, override: str, message: str
) -> None:
    write_identity(tmp_path, identity())
    with pytest.raises(CheckpointError, match=message):
        check_identity(tmp_path, identity(override))


def test_checkpoints_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run\.json"):
        check_identity(tmp_path, identity())
