"""Layouts by name."""

from __future__ import annotations

from typing import Any

import pytest

from speechlm.errors import CheckpointError, ConfigError
from speechlm.layouts.registry import LAYOUTS, build_layout, layout_from_dict, layout_options


@pytest.mark.parametrize("name", LAYOUTS)
def test_defaults_build_for_the_tokenizers_they_are_for(name: str) -> None:
    layout = build_layout(name, {}, 1)
    assert layout.name == name
    assert layout.to_dict()["options"].keys() == layout_options(name).keys()
    assert len(layout.stream_sizes((100,))) == layout.num_streams


def test_lists_and_tuples_build_the_same() -> None:
    listed = build_layout("delay", {"delays": [0, 1, 1]}, 3)
    assert listed == build_layout("delay", {"delays": (0, 1, 1)}, 3)
    assert listed != build_layout("delay", {"delays": [0, 1, 2]}, 3)


def test_the_numbers_of_streams_that_papers_name() -> None:
    assert build_layout("duplex", {"text": True}, 8).num_rows == 17  # Moshi
    assert build_layout("duplex", {}, 1).num_rows == 2  # dGSLM, NTPP
    assert build_layout("text-parallel", {}, 7).num_rows == 8  # Mini-Omni
    assert build_layout("grouped", {"size": 3}, 1).stream_sizes((500,)) == (500,) * 3
    assert build_layout("prosody", {}, 1).stream_sizes((500,)) == (500, 32, 32)
    assert build_layout("prosody", {}, 3).stream_sizes((500, 16, 8)) == (500, 16, 8)
    assert build_layout("duplex", {}, 2).stream_sizes((8, 9)) == (8, 9, 8, 9)


@pytest.mark.parametrize(
    ("name", "options", "num_codebooks", "message"),
    [
        ("falt", {}, 1, r"unknown layout 'falt'; did you mean 'flat'\?"),
        ("flat", {"colapse": True}, 1, r"no option 'colapse'; did you mean 'collapse'\?"),
        ("flat", {}, 0, r"at least 1 codebook, got K = 0"),
        ("flat", {}, 8, r"1 codebook, got one of 8; flattened, parallel"),
        ("flat", {"collapse": 1}, 1, r"collapse as true or false, got 1"),
        ("flat", {"question_weight": -1}, 1, r"question_weight as a number of 0 or more"),
        ("grouped", {"size": 2.5}, 1, r"size as a whole number, got 2\.5"),
        ("grouped", {"size": 0}, 1, r"at least 1 unit, got 0"),
        ("delay", {"delays": 1}, 2, r"delays as a list of whole numbers, got 1"),
        ("delay", {"delays": [0, -1]}, 2, r"0 to 4096 columns a stream, got \[0, -1\]"),
        ("delay", {"delays": [1, 2]}, 2, r"a stream without delay.*take 1 off"),
        ("delay", {"delays": [0]}, 2, r"expected 2 delays, got 1"),
        ("coarse-first", {"stages": [0, 1]}, 2, r"stages as lists of whole numbers"),
        ("coarse-first", {"stages": [[0], [0]]}, 2, r"every codebook once"),
        ("coarse-first", {"stages": [[0]]}, 2, r"expected 2 codebooks in stages, got 1"),
        ("parallel", {"stream_weights": [1]}, 2, r"stream_weights of 2 numbers"),
        ("interleave-chunks", {"text_chunk": 0}, 1, r"at least 1 token and 1 unit, got 0:26"),
        ("text-parallel", {"delays": [1, 0]}, 1, r"text without delay.*timed=true"),
        ("prosody", {}, 2, r"of 1 codebook, got one of 2; or 3"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    name: str, options: dict[str, Any], num_codebooks: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_layout(name, options, num_codebooks)
    assert "\n" not in str(caught.value)


def test_a_saved_layout_that_lacks_a_key_is_refused() -> None:
    with pytest.raises(CheckpointError, match="lacks num_codebooks, options"):
        layout_from_dict({"name": "flat"})
