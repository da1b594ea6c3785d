"""What a layout lays out, taken from a unit store's rows: the fields of one sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from speechlm.config import SpansConfig
from speechlm.data.shards import StoredUnits
from speechlm.errors import InputError
from speechlm.layouts.grid import Layout
from speechlm.layouts.monologue import fit_words
from speechlm.layouts.plan import merged_by
from speechlm.layouts.spans import Word, choose_spans
from speechlm.layouts.text import TextTokenizer
from speechlm.units import Units

CONVERSATION = {"question", "answer", "question_text", "answer_text", "text", "words"}
DIALOGUE = {"self", "other", "text", "words"}
SPEECH = {"speech", "text", "words", "spans"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Kept:
    """What training keeps of a recording."""

    codes: Tensor
    """int32 [K, F]."""
    text: Tensor | None = None
    """Its tokens, int64 [T]; None where the layout needs none, or the row has none."""
    words: tuple[Word, ...] | None = None
    """The same for its aligned words."""


class ContentPlan:
    """Which fields of a layout come from what of a row.

    Raises:
        InputError: The layout lays out what a unit store does not hold.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        num_codebooks: int,
        text_tokenizer: TextTokenizer | None,
        spans: SpansConfig,
    ) -> None:
        names = frozenset(field.name for field in layout.fields)
        for field in layout.fields:
            if field.kind == "units" and field.num_streams != num_codebooks:
                raise InputError(
                    f"the layout {layout.name!r} lays out {field.num_streams} streams, the unit "
                    f"store holds {num_codebooks}; tokenize with all of them, or choose another"
                )
        self.side_by_side = {"self", "other"} <= names
        """Whether a recording and its reply are two speakers in time with each other."""
        takes_conversations = self.side_by_side or {"question", "answer"} <= names
        both = DIALOGUE if self.side_by_side else CONVERSATION
        self.conversation = names & both if takes_conversations else frozenset()
        """Fields of a conversation; empty where the layout takes none."""
        self.speech = names & SPEECH if "speech" in names else frozenset()
        """Fields of a recording alone; empty where the layout takes none."""
        self._needs_words = bool(names & {"words", "spans"})
        self._needs_text = not self._needs_words and any(f.kind == "text" for f in layout.fields)
        assert text_tokenizer is not None or not (self._needs_words or self._needs_text)
        self._layout = layout
        self._tokenizer = text_tokenizer
        self._spans = spans

    def keep(self, row: StoredUnits) -> Kept:
        """What of a row its sequences need."""
        units = row.units.expand()
        merged = merged_by(self._layout, units.codes)
        codes = units.codes if merged is None else merged[0]
        text = words = None
        if self._tokenizer is not None and self._needs_text and row.text:
            text = self._tokenizer.encode(row.text)
        if self._tokenizer is not None and self._needs_words and row.words:
            spelt = self._tokenizer.encode_words([word.word for word in row.words])
            words = tuple(
                Word(
                    tokens=tuple(tokens.tolist()),
                    start=_frame(word.start_s, units),
                    end=_frame(word.end_s, units),
                )
                for tokens, word in zip(spelt, row.words, strict=True)
            )
        return Kept(codes=codes.to(torch.int32), text=text, words=words)

    def lacks(self, said: Kept, asked: Kept | None = None) -> str | None:
        """Why a recording, or an answer to ``asked``, cannot be laid out; None where it can."""
        names = self.speech if asked is None else self.conversation
        if asked is not None and self.side_by_side and said.codes.shape != asked.codes.shape:
            return "two channels that differ in length"
        if self._needs_text and names & {"text", "answer_text"} and said.text is None:
            return "no text"
        if asked is not None and "question_text" in names and asked.text is None:
            return "no text of the question"
        if not names & {"words", "spans"}:
            return None
        starts = [word.start for word in said.words or ()]
        if not starts:
            return "no aligned words"
        if starts != sorted(starts):
            return "aligned words out of order"
        if "words" in names:
            try:
                _fit(said)
            except InputError:
                return "more text tokens than fit into the frames"
        return None

    def longest_draw(self, said: Kept) -> int | None:
        """LM positions that no draw of a recording exceeds; None where nothing is drawn."""
        if "spans" not in self.speech:
            return None
        words = said.words or ()
        written = (max(0, len(word.tokens) - (word.end - word.start)) for word in words)
        marks = len(words) + 1
        return said.codes.shape[1] + sum(written) + marks

    def of_speech(self, said: Kept, codes: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The fields of a recording alone.

        Args:
            said: The recording.
            codes: Its units, or a piece of them, int64 [K, F].
            generator: Draws which words are spoken, where that is drawn.
        """
        if "spans" in self.speech:
            assert said.words is not None
            return choose_spans(
                said.words,
                codes,
                self._spans.strategy,
                generator=generator,
                probability=self._spans.probability,
                mean_words=self._spans.mean_words,
                fraction=self._spans.fraction,
            )
        return self._fields(self.speech, {"speech": codes}, said)

    def of_conversation(
        self, asked: Kept, codes: Tensor, answer: Kept, answer_codes: Tensor
    ) -> dict[str, Tensor]:
        """The fields of a question, of which ``codes`` int64 [K, F] are read, and its answer.

        ``answer_codes`` int64 [K, F'] are the answer's, or a piece of them where both speakers
        are side by side.
        """
        if self.side_by_side:
            return self._fields(self.conversation, {"self": answer_codes, "other": codes}, answer)
        known = {"question": codes, "answer": answer_codes}
        if asked.text is not None:
            known["question_text"] = asked.text
        if answer.text is not None:
            known["answer_text"] = answer.text
        return self._fields(self.conversation, known, answer)

    @staticmethod
    def _fields(names: frozenset[str], known: dict[str, Tensor], said: Kept) -> dict[str, Tensor]:
        if "words" in names:
            assert said.words is not None
            tokens = [token for word in said.words for token in word.tokens]
            known |= {"text": torch.tensor(tokens, dtype=torch.int64), "words": _fit(said)}
        elif said.text is not None:
            known |= {"text": said.text}
        return {name: known[name] for name in names}


def _frame(seconds: float, units: Units) -> int:
    return units.unit_at(min(max(round(seconds * units.frame_rate), 0), units.num_frames))


def _fit(said: Kept) -> Tensor:
    starts = [(word.start, len(word.tokens)) for word in said.words or () if word.tokens]
    return fit_words(starts, said.codes.shape[1])
