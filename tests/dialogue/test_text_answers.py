"""A bundle that writes down what it hears, and what it says, before it says it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from small_bundle import small_bundle
from small_talk import QUESTION, Talk, settings, speech

pytest.importorskip("onnxruntime")
toy_text = pytest.importorskip("toy_text")

from speechlm import SpeechLM  # noqa: E402
from speechlm.dialogue.messages import (  # noqa: E402
    Cancel,
    Commit,
    Committed,
    Hear,
    Respond,
    ResponseEnded,
    Sound,
    Text,
    Transcribed,
)
from speechlm.layouts.registry import build_layout  # noqa: E402
from speechlm.layouts.text import TextTokenizer  # noqa: E402
from speechlm.layouts.vocabulary import Vocabulary  # noqa: E402
from speechlm.model.architecture import DecoderConfig  # noqa: E402
from speechlm.model.decoder import Decoder  # noqa: E402
from speechlm.model.unit_lm import UnitLM  # noqa: E402
