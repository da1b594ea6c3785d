"""Every test runs offline, on one thread, with third parties' import-time warnings let pass."""

from __future__ import annotations

import os

# Before torch is imported: more threads only make small tests slower, and two runs at once
# would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import socket
from pathlib import Path
from typing import Any

import pytest

LOCAL = ("127.", "::1", "localhost")

THIRD_PARTY_WARNINGS = (
    # audioread, which lhotse imports, uses these modules of the standard library.
    "ignore:'(aifc|audioop|sunau)' is deprecated:DeprecationWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    for line in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that reaches beyond this machine."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        inet = self.family in (socket.AF_INET, socket.AF_INET6)
        if inet and not str(address[0]).startswith(LOCAL):
            pytest.fail(f"the test tried to connect to {address}; tests are offline")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle on disk, shared by all tests: copy it before changing it."""
    from small_bundle import small_bundle

    folder = tmp_path_factory.mktemp("shared") / "bundle"
    small_bundle().save_pretrained(folder)
    return folder
