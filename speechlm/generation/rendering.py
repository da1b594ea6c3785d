"""An answer while it is drawn: an LM's columns in, sound and text out, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speechlm.layouts.grid import Prompt
from speechlm.model.unit_lm import UnitLM
from speechlm.protocols import Speaker, Vocoder

FIRST_CHUNK_UNITS = 4
"""Columns drawn before the first sound of a live reply; later sound comes in pieces of as many."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """What became certain."""

    sound: Tensor
    """float32 [n] at the vocoder's rate."""
    text: str


class Rendering:
    """Turns the columns that an LM draws after a prompt into sound, in small pieces."""

    def __init__(
        self, lm: UnitLM, vocoder: Vocoder, prompt: Prompt, speaker: Speaker | None
    ) -> None:
        self.codes = torch.zeros(0, 0, dtype=torch.int64)
        """Units rendered so far, int64 [K, F]."""
        self.text = ""
        """Of the answer."""
        self.heard = ""
        """What the LM wrote down of the question, where it does."""
        self._lm = lm
        self._prompt = prompt
        self._stream = vocoder.stream(speaker)
        self._columns: list[tuple[int, ...]] = []

    @property
    def num_columns(self) -> int:
        return len(self._columns)

    def push(self, column: Sequence[int]) -> Piece | None:
        """Take a column of joint ids; every few of them give a piece."""
        self._columns.append(tuple(column))
        if len(self._columns) % FIRST_CHUNK_UNITS:
            return None
        return self._render()

    def finish(self) -> Piece:
        """Give the rest."""
        piece = self._render()
        return Piece(sound=torch.cat([piece.sound, self._stream.finish()]), text=piece.text)

    def _render(self) -> Piece:
        lm = self._lm
        columns = torch.tensor(self._columns, dtype=torch.int64).reshape(-1, lm.layout.num_rows).T
        content = lm.layout.read(lm.vocabulary, self._prompt, columns)
        # Frames that are whole; some streams may run behind others.
        codes = content["answer" if "answer" in content else "speech"]
        new = codes[:, self.codes.shape[1] :]
        self.codes = codes
        said = self.text
        if lm.text_tokenizer is not None:
            if "question_text" in content:
                self.heard = lm.text_tokenizer.decode(content["question_text"])
            tokens = content.get("answer_text", content.get("text"))
            text = said if tokens is None else lm.text_tokenizer.decode(tokens)
            # A character may need another token until it is one.
            self.text = text if text.startswith(said) and not text.endswith("\ufffd") else said
        return Piece(sound=self._stream.push(new), text=self.text[len(said) :])
