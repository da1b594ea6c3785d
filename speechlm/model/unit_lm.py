"""A decoder, its vocabulary and its layout: the LM as the rest of the package uses it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from speechlm.config import build
from speechlm.errors import CheckpointError, ConfigError, InputError
from speechlm.files import write_folder_aside
from speechlm.layouts.grid import Layout, LMSequence
from speechlm.layouts.registry import layout_from_dict
from speechlm.layouts.text import TextTokenizer
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Decoder
from speechlm.model.likelihood import score
from speechlm.parts import fingerprint, load_part, save_part

KIND = "unit-lm"
TEXT_NAME = "text_tokenizer"
"""Folder of the text tokenizer, where the LM reads and writes text."""


class UnitLM:
    """A trained decoder, put into evaluation mode, with its vocabulary and layout.

    Raises:
        InputError: The decoder has another number of ids than the vocabulary, or the layout
            does not fit.
        FingerprintError: The text tokenizer is not the vocabulary's.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        layout: Layout,
        text_tokenizer: TextTokenizer | None = None,
    ) -> None:
        if decoder.config.vocab_size != vocabulary.size:
            raise InputError(
                f"expected a decoder of {vocabulary.size} ids, as the vocabulary has, "
                f"got one of {decoder.config.vocab_size}"
            )
        layout.check(vocabulary)
        if decoder.depth is not None:
            decoder.depth.check(layout.row_ids(vocabulary))
        if text_tokenizer is not None:
            vocabulary.check_text(text_tokenizer.fingerprint)
        self.decoder = decoder.eval()
        self.vocabulary = vocabulary
        self.layout = layout
        self.text_tokenizer = text_tokenizer

    @property
    def device(self) -> torch.device:
        return self.decoder.model.embed_tokens.weight.device

    @functools.cached_property
    def fingerprint(self) -> str:
        """Name and hash of shape, vocabulary, layout and weights."""
        return fingerprint(KIND, self._config(), self.decoder.state_dict())

    def to(self, device: torch.device | str) -> Self:
        self.decoder.to(device)
        return self

    def log_likelihood(self, sequences: Sequence[LMSequence]) -> Tensor:
        """How probable the LM finds each sequence, by its loss weights.

        :func:`speechlm.model.likelihood.score` counts in other ways, and parts.

        Args:
            sequences: Of any lengths up to ``max_positions``; each cell counts by its weight.

        Returns:
            Natural logarithms, float32 [N], in the order given, on the CPU.

        Raises:
            InputError: A sequence does not fit the layout, or is longer than ``max_positions``.
        """
        found = score(self, sequences, weighted=True)
        return torch.tensor([one.total for one in found], dtype=torch.float32)

    def save(self, folder: Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and the text tokenizer, all or none."""
        with write_folder_aside(folder) as aside:
            save_part(aside, KIND, self._config(), self.decoder.state_dict())
            if self.text_tokenizer is not None:
                self.text_tokenizer.save(aside / TEXT_NAME)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: The folder is missing, partial, changed, or of another kind.
            FingerprintError: The text tokenizer was exchanged.
        """
        part = load_part(folder, KIND)
        try:
            config = build(DecoderConfig, part.config["decoder"], "decoder")
            vocabulary = Vocabulary.from_dict(part.config["vocabulary"])
            layout = layout_from_dict(part.config["layout"])
            with torch.device("meta"):
                decoder = Decoder(config)
            decoder.load_state_dict(part.tensors, assign=True)
        except (KeyError, ConfigError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{folder} is not a unit LM of this version: {reason}") from error
        text = folder / TEXT_NAME
        text_tokenizer = TextTokenizer.load(text) if text.is_dir() else None
        return cls(decoder, vocabulary, layout, text_tokenizer).to(device)

    def _config(self) -> dict[str, object]:
        return {
            "decoder": asdict(self.decoder.config),
            "vocabulary": self.vocabulary.to_dict(),
            "layout": self.layout.to_dict(),
        }
