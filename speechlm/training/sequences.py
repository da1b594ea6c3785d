"""What a unit store gives to learn from: conversations, and recordings on their own."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from typing import Self

import torch
from torch import Tensor

from speechlm.data.store import StoredUnits, UnitStore
from speechlm.errors import ConfigError, CorpusError
from speechlm.layouts.grid import Layout, LMSequence
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.training.content import ContentPlan, Kept


class SequenceSet:
    """The sequences of one split, by number: conversations first, then speech.

    A recording with a reply is a question, and makes a conversation, where the layout takes
    those; every other one is speech on its own. Where the layout has two speakers side by side,
    the two are the channels of a dialogue, the reply being one's own. Speech and dialogues longer
    than ``max_length`` are cut into pieces, unless they have text; what cannot be cut or laid out
    is counted in ``left_out``.
    """

    def __init__(
        self, layout: Layout, vocabulary: Vocabulary, plan: ContentPlan, *, max_length: int
    ) -> None:
        self.layout = layout
        self.vocabulary = vocabulary
        self.max_length = max_length
        self.left_out: Counter[tuple[str, str]] = Counter()
        """How many of what are no sequence, and why."""
        self._plan = plan
        self._kept: list[Kept] = []
        self._conversations: list[tuple[int, ...]] = []
        """Question and answer; of a piece of a dialogue its first frame and its end besides."""
        self._pieces: list[tuple[int, int, int]] = []
        self._known_lengths: dict[tuple[object, ...], int] = {}
        self._lengths: Tensor | None = None

    @classmethod
    def of_split(
        cls,
        store: UnitStore,
        layout: Layout,
        vocabulary: Vocabulary,
        plan: ContentPlan,
        split: str,
        *,
        max_length: int,
    ) -> Self:
        """Gather a split of a store; recordings without any split belong to ``"train"``.

        Raises:
            ConfigError: ``max_length`` has no room for one frame.
        """
        sequences = cls(layout, vocabulary, plan, max_length=max_length)
        numbers: dict[str, int] = {}
        replies: set[str] = set()
        alone: set[str] = set()

        def number_of(row: StoredUnits) -> int:
            if row.id not in numbers:
                numbers[row.id] = len(sequences._kept)
                sequences._kept.append(plan.keep(row))
            return numbers[row.id]

        for row in store.rows():
            if (row.split or "train") != split:
                continue
            if row.reply is None and plan.side_by_side:
                alone.add(row.id)
            elif row.reply is None or not plan.conversation:
                sequences._add_speech(number_of(row))
            elif row.reply not in store:
                sequences.left_out["questions", "no reply in the unit store"] += 1
            else:
                replies.add(row.reply)
                question = number_of(row)
                known = numbers.get(row.reply)
                answer = number_of(store[row.reply]) if known is None else known
                sequences._add_conversation(question, answer)
        if without := len(alone - replies):
            sequences.left_out["recordings", "no other speaker beside them"] += without
        return sequences

    @property
    def num_conversations(self) -> int:
        return len(self._conversations)

    @property
    def num_speech(self) -> int:
        return len(self._pieces)

    def __len__(self) -> int:
        return self.num_conversations + self.num_speech

    def lengths(self) -> Tensor:
        """LM positions of every sequence, int64 [N]; of one that is drawn, those of one draw."""
        if self._lengths is None:
            lengths = [self._length(number) for number in range(len(self))]
            self._lengths = torch.tensor(lengths, dtype=torch.int64)
        return self._lengths

    def sequence(self, index: int, *, unit_dropout: float = 0.0, seed: int = 0) -> LMSequence:
        """Lay out one sequence.

        Args:
            index: Which one.
            unit_dropout: Probability that a unit of a question is replaced by a random one.
            seed: Of those replacements, and of whatever else the layout draws.
        """
        content = self._content(index, unit_dropout=unit_dropout, seed=seed)
        sequence = self.layout.encode(self.vocabulary, content)
        if self._goes_on(index):
            sequence = _without_end(sequence, self.vocabulary.end)
        # Only one whose aligned words overlap can be longer.
        return _cut(sequence, self.max_length)

    def fingerprint(self) -> str:
        """Name the sequences and their order, as ``units-0123456789abcdef``."""
        digest = hashlib.sha256(repr((self._conversations, self._pieces)).encode())
        for kept in self._kept:
            digest.update(kept.codes.contiguous().numpy().tobytes())
            if kept.text is not None or kept.words is not None:
                text = None if kept.text is None else kept.text.tolist()
                digest.update(repr((text, kept.words)).encode())
        return f"units-{digest.hexdigest()[:16]}"

    def check_not_empty(self, path: object) -> None:
        """Refuse to train on nothing.

        Raises:
            CorpusError: There is no sequence.
        """
        if len(self) == 0:
            raise CorpusError(
                f"{path} holds no sequence to train on: "
                f"{'; '.join(self.describe_left_out()) or 'no recording is in split train'}"
            )

    def describe_left_out(self) -> list[str]:
        """What was left out and why, a line each."""
        return [f"left out {n} {what}: {why}" for (what, why), n in self.left_out.items()]

    def _add_conversation(self, question: int, answer: int) -> None:
        asked, said = self._kept[question], self._kept[answer]
        why = self._plan.lacks(said, asked)
        if why is None and self._plan.conversation == {"self", "other"}:
            for start, stop in self._cuts(asked.codes.shape[1]):
                self._conversations.append((question, answer, start, stop))
            return
        if why is None:
            self._conversations.append((question, answer))
            if self._length(self.num_conversations - 1) <= self.max_length:
                return
            self._conversations.pop()
            why = self._too_long
        self.left_out["conversations", why] += 1

    def _add_speech(self, recording: int) -> None:
        if not self._plan.speech:
            self.left_out["recordings alone", f"the layout {self.layout.name!r} takes none"] += 1
            return
        said = self._kept[recording]
        frames = said.codes.shape[1]
        if self._plan.speech == {"speech"}:
            self._pieces += [(recording, *cut) for cut in self._cuts(frames)]
        elif why := self._plan.lacks(said):
            self.left_out["recordings", why] += 1
        else:
            self._pieces.append((recording, 0, frames))
            longest = self._plan.longest_draw(said)
            if (self._length(len(self) - 1) if longest is None else longest) > self.max_length:
                self._pieces.pop()
                self.left_out["recordings", self._too_long] += 1

    def _cuts(self, num_frames: int) -> list[tuple[int, int]]:
        """From and to of the pieces that so many frames are cut into."""
        room = self._room
        return [(start, min(start + room, num_frames)) for start in range(0, num_frames, room)]

    @property
    def _too_long(self) -> str:
        return (
            f"longer than {self.max_length} LM positions (model.max_positions, train.batch_units)"
        )

    def _content(self, index: int, *, unit_dropout: float, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        if index >= self.num_conversations:
            recording, start, stop = self._pieces[index - self.num_conversations]
            said = self._kept[recording]
            return self._plan.of_speech(said, said.codes[:, start:stop].long(), generator)
        question, answer, *piece = self._conversations[index]
        asked, said = self._kept[question], self._kept[answer]
        frames = slice(*piece) if piece else slice(None)
        codes = asked.codes[:, frames]
        if unit_dropout > 0:
            codes = self._dropped(codes, unit_dropout, generator)
        own = said.codes[:, frames].long()
        return self._plan.of_conversation(asked, codes.long(), said, own)

    def _goes_on(self, index: int) -> bool:
        """Whether a sequence is a piece of a recording that does not end with it."""
        if index < self.num_conversations:
            recording, *piece = self._conversations[index]
            stop = piece[2] if len(piece) > 2 else self._kept[recording].codes.shape[1]
        else:
            recording, _, stop = self._pieces[index - self.num_conversations]
        return stop < self._kept[recording].codes.shape[1]

    def _length(self, index: int) -> int:
        content = self._content(index, unit_dropout=0.0, seed=0)
        return self._length_of(content, goes_on=self._goes_on(index))

    def _length_of(self, content: dict[str, Tensor], *, goes_on: bool = False) -> int:
        """Mostly, whatever its content, a sequence is as long as another of the same shapes."""
        key = (goes_on, *((name, *tensor.shape) for name, tensor in content.items()))
        if getattr(self.layout, "length_varies", False) or key not in self._known_lengths:
            sequence = self.layout.encode(self.vocabulary, content)
            if goes_on:
                sequence = _without_end(sequence, self.vocabulary.end)
            self._known_lengths[key] = len(sequence)
        return self._known_lengths[key]

    @functools.cached_property
    def _room(self) -> int:
        """The most frames of a recording alone, or of a dialogue, that fit into ``max_length``."""
        sizes = torch.tensor(self._codebook_sizes(self._kept[0].codes))[:, None]

        def fits(frames: int) -> bool:
            # Counting up, so that there is nothing to collapse.
            codes = torch.arange(frames) % sizes
            names = ("self", "other") if self._plan.side_by_side else ("speech",)
            return self._length_of(dict.fromkeys(names, codes)) <= self.max_length

        if not fits(1):
            raise ConfigError(
                f"one frame of the layout {self.layout.name!r} is longer than {self.max_length} LM "
                "positions; raise model.max_positions or train.batch_units"
            )
        most = 1
        while fits(2 * most):
            most *= 2
        step = most
        while step > 1:
            step //= 2
            most += step * fits(most + step)
        return most

    def _dropped(self, codes: Tensor, probability: float, generator: torch.Generator) -> Tensor:
        dropped = torch.rand(codes.shape, generator=generator) < probability
        others = [
            torch.randint(size, row.shape, generator=generator, dtype=codes.dtype)
            for size, row in zip(self._codebook_sizes(codes), codes, strict=True)
        ]
        return torch.where(dropped, torch.stack(others), codes)

    def _codebook_sizes(self, codes: Tensor) -> tuple[int, ...]:
        """Units of each codebook of codes [K, F]: the first streams are the codebooks."""
        return self.vocabulary.stream_sizes[: len(codes)]


def _without_end(sequence: LMSequence, end: int) -> LMSequence:
    """The same as if it went on: its end is not predicted, and left out where it stands alone."""
    weights = sequence.loss_weights.where(sequence.ids != end, 0.0)
    counted = (weights > 0).any(dim=0).nonzero().flatten()
    last = int(counted[-1]) + 1 if len(counted) else len(sequence)
    return _cut(LMSequence(ids=sequence.ids, loss_weights=weights), last)


def _cut(sequence: LMSequence, length: int) -> LMSequence:
    if len(sequence) <= length:
        return sequence
    return LMSequence(ids=sequence.ids[:, :length], loss_weights=sequence.loss_weights[:, :length])
