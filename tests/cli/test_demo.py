"""``demo``: public commands in order, each shown, finished ones not run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from speechlm.cli import demo
from speechlm.cli.main import COMMANDS, main
from speechlm.config import load_config
from speechlm.files import read_json
from speechlm.presets import preset

Ran = list[list[str]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ran:
    """Stand in for the commands: note each and leave what it would."""
    commands: Ran = []
    monkeypatch.setattr(demo, "execute", worker(commands, tmp_path))
    return commands


def worker(
    commands: Ran, output: Path, fails: dict[str, int] | None = None
) -> Callable[[list[str]], int]:
    def run(command: list[str]) -> int:
        stage = command[len(demo.program())]
        commands.append(command)
        code = (fails or {}).get(stage, 0)
        if code == 0:
            config = load_config(preset("demo"), [f"output={output}"])
            product = demo.product(stage, config)
            product.parent.mkdir(parents=True, exist_ok=True)
            product.touch()
        return code

    return run


def stages(commands: Ran) -> list[str]:
    return [command[len(demo.program())] for command in commands]


def test_the_stages_are_public_commands() -> None:
    assert set(demo.STAGES) <= set(COMMANDS)


def test_it_runs_the_commands_in_order_and_prints_each_before(
    ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", f"output={tmp_path}", "train.max_steps=3"]) == 0
    assert stages(ran) == list(demo.STAGES)
    shown = capsys.readouterr().out
    for command in ran:
        assert command[-2:] == [f"output={tmp_path}", "train.max_steps=3"]
        assert f"$ {' '.join(command)}\n" in shown
    for name in ("report.html", "report.json", "bundle"):
        assert f"\n{tmp_path / name}\n" in shown


def test_the_time_of_each_stage_is_kept(ran: Ran, tmp_path: Path) -> None:
    main(["demo", f"output={tmp_path}"])
    seconds = read_json(tmp_path / "seconds.json")
    assert list(seconds) == list(demo.STAGES)
    assert all(spent >= 0 for spent in seconds.values())


def test_a_rerun_does_nothing_again_and_keeps_the_times(
    ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["demo", f"output={tmp_path}"])
    before = read_json(tmp_path / "seconds.json")
    ran.clear()
    capsys.readouterr()
    assert main(["demo", f"output={tmp_path}"]) == 0
    assert ran == []
    assert capsys.readouterr().out.count("done already") == len(demo.STAGES)
    assert read_json(tmp_path / "seconds.json") == before


def test_another_configuration_runs_the_commands_again(ran: Ran, tmp_path: Path) -> None:
    main(["demo", f"output={tmp_path}"])
    ran.clear()
    main(["demo", f"output={tmp_path}", "train.max_steps=3"])
    assert stages(ran) == list(demo.STAGES)


def test_what_was_deleted_is_made_again_with_all_that_follows(ran: Ran, tmp_path: Path) -> None:
    main(["demo", f"output={tmp_path}"])
    ran.clear()
    (tmp_path / "units").unlink()
    main(["demo", f"output={tmp_path}"])
    assert stages(ran) == ["tokenize", "train", "evaluate"]


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (2, 2), (-9, 1)])
def test_a_failed_command_stops_it_and_a_rerun_goes_on_there(
    code: int,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran: Ran = []
    monkeypatch.setattr(demo, "execute", worker(ran, tmp_path, {"train": code}))
    assert main(["demo", f"output={tmp_path}"]) == expected
    assert stages(ran) == ["corpus", "fit", "tokenize", "train"]
    assert f"'speechlm train' ended with exit code {code}" in capsys.readouterr().err
    assert "train" not in read_json(tmp_path / "seconds.json")

    ran.clear()
    monkeypatch.setattr(demo, "execute", worker(ran, tmp_path))
    assert main(["demo", f"output={tmp_path}"]) == 0
    assert stages(ran) == ["train", "evaluate"]


def test_a_typo_is_found_before_anything_runs(
    ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "train.max_step=3"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert ran == []


def test_short_takes_the_short_preset(ran: Ran, tmp_path: Path) -> None:
    main(["demo", "--short", f"output={tmp_path}"])
    assert all(Path(command[-2]).name == "demo-short.yaml" for command in ran)


def test_a_tokenizer_without_a_vocoder_gets_one_trained(ran: Ran, tmp_path: Path) -> None:
    given = ["tokenizer.name=phone-ctc", "layout.name=delay"]
    main(["demo", f"output={tmp_path}", *given])
    start = len(demo.program())
    assert [Path(command[start + 1]).name for command in ran] == [
        *("demo.yaml", "phone-ctc.yaml", "demo.yaml"),
        *("demo-vocoder.yaml", "demo.yaml", "demo.yaml"),
    ]
    for name in ("causal-codec", "logmel-kmeans", "unit-bpe"):
        config = load_config(preset("demo"), [f"tokenizer.name={name}"])
        assert demo.implied(config) == []
    named = [*given, "vocoder.name=unit-flow"]
    assert demo.implied(load_config(preset("demo"), named)) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_a_command_that_is_stopped_may_finish_what_it_is_at(
    stop: signal.Signals, tmp_path: Path
) -> None:
    child = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    time.sleep(1)\n"
        "    pathlib.Path(sys.argv[1]).touch()\n"
        "    sys.exit(1)\n"
        "signal.signal(signal.SIGINT, end)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path(sys.argv[2]).touch()\n"
        "time.sleep(60)\n"
    )
    saved, started = tmp_path / "saved", tmp_path / "started"
    command = [sys.executable, "-c", child, str(saved), str(started)]
    parent = f"from speechlm.cli.demo import execute; execute({command!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not started.exists():
        time.sleep(0.01)
    if stop == signal.SIGINT:
        os.killpg(process.pid, stop)  # as a terminal does
    else:
        process.send_signal(stop)
    process.wait(timeout=60)
    assert saved.exists()


def test_parts_that_must_be_trained_are_trained_inside_the_run(tmp_path: Path) -> None:
    given = ["tokenizer.name=causal-codec", "vocoder.name=unit-vocos", "seed=3"]
    overrides = [f"output={tmp_path}", *given, "train.max_steps=7", "vocoder.options.dim=64"]
    config = load_config(preset("demo"), overrides)
    planned = demo.plan(config, preset("demo"), overrides)
    assert [stage.name for stage in planned] == [
        *("corpus", "tokenizer", "tokenize", "vocoder", "train", "evaluate")
    ]
    commands = [stage.command[len(demo.program()) :] for stage in planned]
    assert [words[0] for words in commands][1::2] == ["train", "train", "evaluate"]
    for words, part in ((commands[1], "tokenizer"), (commands[3], "vocoder")):
        trained = load_config(Path(words[1]), words[2:])
        assert trained.train.part == part
        assert trained.corpus_path == config.corpus_path
        assert trained.tokenizer_path == config.tokenizer_path
        assert (trained.seed, trained.output) == (3, tmp_path)
        assert trained.train.max_steps != 7
    assert trained.vocoder.options["dim"] == 64


def test_the_short_form_trains_parts_for_a_few_steps(tmp_path: Path) -> None:
    overrides = [f"output={tmp_path}", "tokenizer.name=causal-codec", "vocoder.name=unit-vocos"]
    config = load_config(preset("demo-short"), overrides)
    for stage in demo.plan(config, preset("demo-short"), overrides, short=True):
        if stage.name in ("tokenizer", "vocoder"):
            trained = load_config(Path(stage.words[0]), stage.words[1:])
            assert trained.train.max_steps == demo.SHORT_STEPS
