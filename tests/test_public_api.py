"""What ``import speechlm`` offers, and that it costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import speechlm


def test_the_public_names_are_these() -> None:
    assert speechlm.__all__ == [
        "SpeechLM",
        "Units",
        "__version__",
        "load_tokenizer",
        "load_vocoder",
    ]


@pytest.mark.parametrize("name", speechlm.__all__)
def test_every_public_name_can_be_had_and_says_what_it_is(name: str) -> None:
    value = getattr(speechlm, name)
    assert isinstance(value, str) or value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_tokeniser'"):
        speechlm.load_tokeniser  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, speechlm; "
        "heavy = {'torch', 'lhotse', 'pyarrow', 'matplotlib', 'transformers', 'fairseq2'}; "
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
