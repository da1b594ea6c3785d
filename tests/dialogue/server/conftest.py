"""The small bundle as a service, for what stands around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechlm import SpeechLM
from speechlm.dialogue.local import LocalService


@pytest.fixture(scope="session")
def small_model(bundle_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(bundle_folder)


@pytest.fixture
def service(small_model: SpeechLM) -> LocalService:
    """Not running yet: ``async with`` starts it."""
    return LocalService(small_model)
