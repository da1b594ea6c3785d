"""Every error that speechlm raises on purpose.

    SpeechLMError                 the base; the command line prints it as one line
    ├── InputError                what the user gave cannot be used: exit code 2
    │   ├── AudioError            a recording: missing, empty, corrupt, silent, NaN, of no length
    │   ├── CorpusError           a corpus, manifest or unit store
    │   ├── ConfigError           a key or value of a configuration
    │   ├── PluginError           a tokenizer or vocoder name, or a missing optional package
    │   ├── CheckpointError       a folder of weights that is missing, partial or of another kind
    │   └── FingerprintError      two parts that were not made for each other
    └── PartialFailure            some of the work is done and kept; a rerun resumes: exit code 1

Messages say what was expected, what came, and what to do.
"""

from __future__ import annotations

from typing import Any


class SpeechLMError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class InputError(SpeechLMError, ValueError):
    """What the user gave cannot be used."""

    exit_code = 2


class AudioError(InputError):
    """A recording cannot be used."""


class CorpusError(InputError):
    """A corpus, manifest or unit store cannot be used."""


class ConfigError(InputError):
    """A key or a value of a configuration cannot be used."""


class PluginError(InputError):
    """A tokenizer or vocoder is not known, or its package is not installed."""


class CheckpointError(InputError):
    """A folder of weights is missing, partial, or of another kind."""


class FingerprintError(InputError):
    """Two parts were not made for each other."""

    def __init__(self, *, part: str, expected: str, got: str, remedy: str) -> None:
        super().__init__(f"{part} was made for {expected!r}, but {got!r} was given; {remedy}")
        self.expected = expected
        self.got = got

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes hand their errors over by pickle, which knows no keyword arguments.
        return _restore, (type(self), self.args, self.__dict__)


class PartialFailure(SpeechLMError):
    """Part of the work failed; what was finished is kept and a rerun resumes."""

    exit_code = 1


def _restore(kind: type[Exception], args: tuple[Any, ...], state: dict[str, Any]) -> Exception:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error
