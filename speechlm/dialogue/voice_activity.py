"""How probably somebody speaks, window by window, as sound comes: silero-vad's network.

Source:
    Silero Team 2024, "Silero VAD", github.com/snakers4/silero-vad. Its wheel carries the network.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechlm.errors import PluginError

SAMPLE_RATE = 16_000
"""Rate that the network hears, Hz."""
WINDOW = 512
"""Samples of a window: 32 ms."""
CONTEXT = 64
"""Samples before a window that it sees again."""


class SpeechDetector:
    """One stream's probability of speech; all streams share one network."""

    def __init__(self) -> None:
        """Raises:
        PluginError: onnxruntime or silero-vad is not installed.
        """
        self._network = _network()
        self._held = torch.zeros(CONTEXT)
        self._state = np.zeros((2, 1, 128), dtype=np.float32)

    def push(self, samples: Tensor) -> list[float]:
        """Take float32 [n] at :data:`SAMPLE_RATE`; give the probability of each whole window."""
        self._held = torch.cat([self._held, samples])
        found = []
        while len(self._held) >= CONTEXT + WINDOW:
            window = self._held[None, : CONTEXT + WINDOW].numpy()
            given = {"input": window, "state": self._state, "sr": np.array(SAMPLE_RATE)}
            probability, self._state = self._network.run(None, given)
            found.append(float(probability[0, 0]))
            self._held = self._held[WINDOW:].clone()
        return found


@cache
def _network() -> Any:
    package = find_spec("silero_vad")
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        package = None
    if package is None or package.origin is None:
        raise PluginError(
            "hearing when somebody speaks needs the packages silero-vad and onnxruntime; "
            "run pip install 'speechlm[serve]'"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = Path(package.origin).parent / "data" / "silero_vad.onnx"
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
