"""The command line's frame: help, unknown words, errors and exit codes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from speechlm.cli import main as main_module
from speechlm.cli import train as train_module
from speechlm.cli.main import COMMANDS, main
from speechlm.errors import AudioError, FingerprintError, PartialFailure, SpeechLMError


def command(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "speechlm", *words],
        capture_output=True,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_quick_and_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from speechlm.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'lhotse', 'pyarrow', 'fairseq2', 'pydantic', 'rich'}; "
        "sys.exit(code or ' '.join(heavy & set(sys.modules)) or 0)"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = os.times()
    # Processor time, which other work on the machine does not change.
    spent = after.children_user - before.children_user
    assert spent + after.children_system - before.children_system < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_complete(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n  # ") >= 3, "three examples"
    assert f"\n  speechlm {name}" in shown
    assert "exit codes:" in shown
    assert "``" not in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_help_are_understood(name: str) -> None:
    from importlib import import_module

    module = import_module(f"speechlm.cli.{name}")
    for line, _ in module.EXAMPLES:
        program, used, *rest = line.split()
        if program == "speechlm":
            parser = ArgumentParser(allow_abbrev=False)
            import_module(f"speechlm.cli.{used}").add_arguments(parser)
            parser.parse_intermixed_args(rest)


def test_help_shows_every_key_of_a_section_with_its_default_and_docstring(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from dataclasses import fields

    from speechlm.cli.arguments import field_docstrings
    from speechlm.config import TrainConfig

    main(["train", "--help"])
    shown = capsys.readouterr().out
    for field in fields(TrainConfig):
        assert f"  train.{field.name}=" in shown
    default = TrainConfig()
    assert f"  train.max_steps={default.max_steps}\n" in shown
    assert f"  train.betas=[{default.betas[0]},{default.betas[1]}]\n" in shown
    assert field_docstrings(TrainConfig)["batch_units"].partition(".")[0] in shown


def test_without_a_command_the_help_is_shown_and_it_is_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenise"]) == 2
    line = capsys.readouterr().err
    assert "unknown command 'tokenise'; did you mean 'tokenize'?" in line
    assert line.count("\n") == 1


def test_an_unknown_option_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--max-steps", "3"]) == 2
    assert "--max-steps" in capsys.readouterr().err


def test_a_typo_in_a_key_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "train.max_step=3"]) == 2
    assert "'train.max_step'; did you mean 'train.max_steps'?" in capsys.readouterr().err


def test_a_wrong_key_in_yaml_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run.yaml"
    run.write_text("trian:\n  max_steps: 3\n")
    assert main(["train", str(run)]) == 2
    line = capsys.readouterr().err
    assert "did you mean 'train'?" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (AudioError("a.wav: the file is empty"), 2, "speechlm: error: a.wav: the file is empty"),
        (SpeechLMError("something"), 1, "speechlm: error: something"),
        (PartialFailure("2 of 3 failed"), 1, "speechlm: error: 2 of 3 failed"),
        (
            FingerprintError(part="the LM", expected="a-1", got="b-2", remedy="train it again"),
            2,
            "the LM was made for 'a-1', but 'b-2' was given; train it again",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, "/x/y: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device", "/big/f"), 1, "of /big; free some and"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "of runs/mine; free some and run"),
        (RuntimeError("write: No space left on device (os error 28)"), 1, "no space left on"),
        (KeyboardInterrupt(), 1, "interrupted; run the same command again to resume"),
        (ModuleNotFoundError("No module", name="fairseq2"), 2, "pip install 'speechlm[train]'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_goes_wrong_becomes_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train_module, "run", raising(error))
    assert main(["train", "output=runs/mine"]) == code
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_a_full_disk_is_recognized_behind_another_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Namespace) -> None:
        try:
            with open("/dev/full", "w") as file:
                file.write("x" * 100_000)
        except OSError as error:
            raise AudioError("cannot be written") from error

    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(train_module, "run", run)
    assert main(["train", "output=runs/mine"]) == 1
    assert "no space left on the disk of runs/mine" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback_and_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_module, "run", raising(ZeroDivisionError("division by zero")))
    assert main(["train"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "please report it" in said


def test_a_reader_that_leaves_is_not_complained_about() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "speechlm", "list", "configs"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b""


def test_the_version_is_shown() -> None:
    from speechlm import __version__

    assert command("--version").stdout == f"speechlm {__version__}\n"


def raising(error: BaseException) -> Callable[[Namespace], None]:
    def run(args: Namespace) -> None:
        raise error

    return run


def test_every_command_has_a_module_and_every_module_is_a_command() -> None:
    folder = Path(main_module.__file__).parent
    shared = {"__init__", "main", "arguments", "render"}
    assert {path.stem for path in folder.glob("*.py")} - shared == set(COMMANDS)
