"""Speech Language Models: tokenize speech, model its units, speak the answer.

Importing this package is cheap; each name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechlm.bundle import SpeechLM as SpeechLM
    from speechlm.plugins import load_tokenizer as load_tokenizer
    from speechlm.plugins import load_vocoder as load_vocoder
    from speechlm.units import Units as Units

__version__ = "0.1.0"

_HOME = {
    "SpeechLM": "speechlm.bundle",
    "Units": "speechlm.units",
    "load_tokenizer": "speechlm.plugins",
    "load_vocoder": "speechlm.plugins",
}

__all__ = ["SpeechLM", "Units", "__version__", "load_tokenizer", "load_vocoder"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
