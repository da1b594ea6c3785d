"""``layout``: pictures of layouts."""

from __future__ import annotations

import pytest

from speechlm.cli.main import main
from speechlm.layouts.registry import LAYOUTS


def test_all_layouts_are_listed_with_a_line_on_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layout", "list"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == list(LAYOUTS)
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in listed.splitlines())
    assert main(["layout", "show"]) == 0
    assert capsys.readouterr().out == listed


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_can_be_shown_with_its_paper(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layout", "show", name]) == 0
    shown = capsys.readouterr().out
    assert "arXiv:" in shown
    assert "\nrow 0: " in shown
    assert " a second at 25 Hz" in shown
    assert "options, with their defaults: " in shown
    assert max(map(len, shown.partition("\nrow 0: ")[0].splitlines()[3:])) <= 80


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("frames", ["0", "1"])
def test_nothing_and_one_frame_can_be_shown(
    name: str, frames: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for tokens in ("0", "1", "5"):
        assert main(["layout", "show", name, "-f", frames, "--tokens", tokens, "--turns"]) == 0
    assert "[end]" in capsys.readouterr().out


def test_moshis_delays_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layout", "show", "delay", "--delays", "0,1,1", "--frames", "2"]) == 0
    picture = capsys.readouterr().out.splitlines()[3:7]
    assert [line.split() for line in picture] == [
        ["0", "1", "2", "3", "4"],
        ["row", "0", "[speech]", "u0:0", "u0:1", "[end]", "·"],
        ["row", "1", "[speech]", "·", "u1:0", "u1:1", "[end]"],
        ["row", "2", "[speech]", "·", "u2:0", "u2:1", "[end]"],
    ]


def test_options_and_rates_are_heeded(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["layout", "show", "grouped", "size=2", "--frame-rate", "50", "--frames", "3"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    drawn = [line.split() for line in shown.splitlines()]
    assert ["row", "1", "[speech]", "u0:1", "·", "[end]"] in drawn
    assert "positions: 0.5 a unit frame, 25 a second at 50 Hz" in shown
    assert "row 1: units of stream 1, 1000 ids" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dely"], "unknown layout 'dely'; did you mean 'delay'?"),
        (["delay", "delay=1,2"], "has no option 'delay'; did you mean 'delays'?"),
        (["delay", "--codebooks", "2", "--delays", "0,1,1"], "expected 2 delays, got 3"),
        (["flat", "-k", "0"], "at least 1 codebook, got K = 0"),
        (["flat", "-k", "4"], "takes a tokenizer of 1 codebook, got one of 4"),
        (["flat", "collapse"], "expected an option as key=value, got 'collapse'"),
        (["flat", "collapse=[1"], "cannot read the value of 'collapse=[1'"),
        (["flat", "--frames", "-1"], "0 or more frames"),
        (["flat", "--frame-rate", "nan"], "a frame rate above 0"),
        (["delay", "delays=[0,1000000]", "-k", "2"], "a delay of 0 to 4096 columns a stream"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["layout", "show", *words]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
