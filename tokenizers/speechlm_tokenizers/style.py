"""Style or emotion of speech by an audio classifier of the hub, one label a window."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from speechlm.audio import resample
from speechlm.errors import CheckpointError, PluginError

_FILES = {"model": "config.json", "features": "preprocessor_config.json"}
_WEIGHTS = "model.safetensors"


class StyleClassifier:
    """A transformers ``AutoModelForAudioClassification`` and its feature extractor.

    Args:
        described: Its ``config.json`` and ``preprocessor_config.json``, as read.
        tensors: Its weights, as ``save_pretrained`` names them.
    """

    def __init__(self, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory() as folder:
            for key, name in _FILES.items():
                (Path(folder) / name).write_text(json.dumps(described[key]), encoding="utf-8")
            save_file(dict(tensors), Path(folder) / _WEIGHTS, metadata={"format": "pt"})
            self._model, self._extractor = _read(folder)
        self.described = dict(described)
        self.tensors = dict(tensors)
        self.sample_rate = int(self._extractor.sampling_rate)
        labels = self._model.config.id2label
        self.labels: tuple[str, ...] = tuple(str(labels[at]) for at in sorted(labels))

    @classmethod
    def of(cls, source: str) -> Self:
        """Take one from a folder or the hub.

        Raises:
            CheckpointError: There is none, or none that classifies audio.
            PluginError: transformers is not installed.
        """
        from safetensors.torch import load_file

        model, extractor = _read(source)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, max_shard_size="1TB")
            extractor.save_pretrained(folder)
            described = {
                key: json.loads((Path(folder) / name).read_text(encoding="utf-8"))
                for key, name in _FILES.items()
            }
            described["model"].pop("_name_or_path", None)  # where it came from is not what it is
            return cls(described, load_file(Path(folder) / _WEIGHTS))

    @torch.inference_mode()
    def label(self, window: Tensor, sample_rate: int) -> int:
        """The most probable label of float32 [T] at ``sample_rate``; ``labels`` names it."""
        heard = resample(window, sample_rate, self.sample_rate)
        inputs = self._extractor(heard.numpy(), sampling_rate=self.sample_rate, return_tensors="pt")
        return int(self._model(**inputs).logits[0].argmax())


def _read(source: str) -> tuple[Any, Any]:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise PluginError("a style_model needs transformers: pip install transformers") from error
    try:
        model = transformers.AutoModelForAudioClassification.from_pretrained(
            source, dtype=torch.float32
        )
        extractor = transformers.AutoFeatureExtractor.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"style_model {source!r} is no audio classifier that can be read ({reason}); give a "
            "folder or hub id with config.json, preprocessor_config.json and weights"
        ) from error
    return model.eval().requires_grad_(False), extractor
