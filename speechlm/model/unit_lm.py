"""A decoder and the vocabulary it speaks: the LM as the rest of the package uses it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from speechlm.config import build
from speechlm.errors import CheckpointError, ConfigError, InputError
from speechlm.layouts.conversation import LMSequence
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Decoder
from speechlm.parts import fingerprint, load_part, save_part

KIND = "unit-lm"
SCORING_POSITIONS = 8192
"""LM positions scored at once, which bounds memory."""


class UnitLM:
    """A trained decoder, put into evaluation mode, with its vocabulary.

    Raises:
        InputError: The decoder has another number of ids than the vocabulary.
    """

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary) -> None:
        if decoder.config.vocab_size != vocabulary.size:
            raise InputError(
                f"expected a decoder of {vocabulary.size} ids, as the vocabulary has, "
                f"got one of {decoder.config.vocab_size}"
            )
        self.decoder = decoder.eval()
        self.vocabulary = vocabulary

    @property
    def device(self) -> torch.device:
        return self.decoder.model.embed_tokens.weight.device

    @functools.cached_property
    def fingerprint(self) -> str:
        """Name and hash of shape, vocabulary and weights."""
        return fingerprint(KIND, self._config(), self.decoder.state_dict())

    def to(self, device: torch.device | str) -> Self:
        self.decoder.to(device)
        return self

    @torch.inference_mode()
    def log_likelihood(self, sequences: Sequence[LMSequence]) -> Tensor:
        """How probable the LM finds each sequence.

        Args:
            sequences: Of any lengths up to ``max_positions``; only positions with a loss
                weight count, each by its weight.

        Returns:
            Natural logarithms, float32 [N], in the order given, on the CPU.

        Raises:
            InputError: A sequence is longer than ``max_positions``.
        """
        totals = torch.zeros(len(sequences))
        # Neighbours in length share a batch, so that little of it is padding.
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        while order:
            longest = len(sequences[order[-1]])
            count = max(1, SCORING_POSITIONS // max(longest, 1))
            chosen, order = order[-count:], order[:-count]
            ids = torch.full((len(chosen), longest), self.vocabulary.pad)
            weights = torch.zeros(len(chosen), longest)
            for row, index in enumerate(chosen):
                ids[row, : len(sequences[index])] = sequences[index].ids
                weights[row, : len(sequences[index])] = sequences[index].loss_weights
            if longest < 2:
                continue
            logits = self.decoder(ids[:, :-1].to(self.device)).float()
            targets = ids[:, 1:].to(self.device)
            scores = -F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
            totals[chosen] = (scores.cpu() * weights[:, 1:]).sum(dim=1)
        return totals

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, both or neither."""
        save_part(folder, KIND, self._config(), self.decoder.state_dict())

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: The folder is missing, partial, changed, or of another kind.
        """
        part = load_part(folder, KIND)
        try:
            config = build(DecoderConfig, part.config["decoder"], "decoder")
            vocabulary = Vocabulary.from_dict(part.config["vocabulary"])
            with torch.device("meta"):
                decoder = Decoder(config)
            decoder.load_state_dict(part.tensors, assign=True)
        except (KeyError, ConfigError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{folder} is not a unit LM of this version: {reason}") from error
        return cls(decoder, vocabulary).to(device)

    def _config(self) -> dict[str, object]:
        return {
            "decoder": asdict(self.decoder.config),
            "vocabulary": self.vocabulary.to_dict(),
        }
