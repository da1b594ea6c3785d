"""The small bundle as a service, for what stands around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from speechlm import SpeechLM
from speechlm.dialogue.local import LocalService


@pytest.fixture(scope="session")
def small_model(bundle_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(bundle_folder)


@pytest.fixture
def service(small_model: SpeechLM) -> Iterator[LocalService]:
    service = LocalService(small_model)
    yield service
    service.close()
