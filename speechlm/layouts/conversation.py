"""How a question and its answer, or a recording alone, become LM positions, and back.

========================================  =================================================
``[user] q1 … qn [assistant] a1 … am [end]``  a question and its answer
``[speech] u1 … un [end]``                    a recording on its own
========================================  =================================================
"""

from __future__ import annotations

import torch
from torch import Tensor

from speechlm.errors import InputError
from speechlm.layouts.grid import LMSequence as LMSequence  # until callers import it there
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.units import Units


def encode_conversation(
    vocabulary: Vocabulary, question: Units, answer: Units, *, question_weight: float = 0.0
) -> LMSequence:
    """Lay out a question and its answer.

    Args:
        vocabulary: Of the tokenizer that made both.
        question: Units [1, F], F >= 0, repeats kept.
        answer: The same.
        question_weight: How much each question unit counts in the loss; the answer's count 1.

    Raises:
        FingerprintError: Another tokenizer made the units.
        InputError: Repeats are merged, or there is more than one stream.
    """
    prompt = reply_prompt(vocabulary, question)
    reply = _units_and_end(vocabulary, answer)
    weights = torch.ones(len(prompt) + len(reply))
    weights[: len(prompt)] = question_weight
    weights[0] = 0.0
    return LMSequence(ids=torch.cat([prompt, reply])[None], loss_weights=weights[None])


def decode_conversation(vocabulary: Vocabulary, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Undo :func:`encode_conversation`.

    Returns:
        The units of the question and of the answer, int64 [K, F] each.

    Raises:
        InputError: ``ids`` are not one whole conversation.
    """
    ids = ids.flatten()
    turns = (ids == vocabulary.assistant).nonzero().flatten()
    if len(ids) < 3 or ids[0] != vocabulary.user or ids[-1] != vocabulary.end or len(turns) != 1:
        raise InputError("expected the ids of one conversation: [user] … [assistant] … [end]")
    turn = int(turns[0])
    return vocabulary.ids_to_units(ids[1:turn]), vocabulary.ids_to_units(ids[turn + 1 : -1])


def encode_speech(vocabulary: Vocabulary, units: Units) -> LMSequence:
    """Lay out a recording alone; every unit and the end count in the loss.

    Raises:
        FingerprintError: Another tokenizer made the units.
        InputError: Repeats are merged, or there is more than one stream.
    """
    ids = torch.cat([torch.tensor([vocabulary.speech]), _units_and_end(vocabulary, units)])
    weights = torch.ones(len(ids))
    weights[0] = 0.0
    return LMSequence(ids=ids[None], loss_weights=weights[None])


def decode_speech(vocabulary: Vocabulary, ids: Tensor) -> Tensor:
    """Undo :func:`encode_speech`: the units, int64 [K, F].

    Raises:
        InputError: ``ids`` are not one whole recording.
    """
    ids = ids.flatten()
    if len(ids) < 2 or ids[0] != vocabulary.speech or ids[-1] != vocabulary.end:
        raise InputError("expected the ids of one recording: [speech] … [end]")
    return vocabulary.ids_to_units(ids[1:-1])


def reply_prompt(vocabulary: Vocabulary, question: Units) -> Tensor:
    """The ids after which the LM answers ``question``, int64 [F + 2]."""
    vocabulary.check(question)
    codes = vocabulary.units_to_ids(question.codes)[0]
    return torch.cat([torch.tensor([vocabulary.user]), codes, torch.tensor([vocabulary.assistant])])


def speech_prompt(vocabulary: Vocabulary, units: Units) -> Tensor:
    """The ids after which the LM goes on with a recording, int64 [F + 1]."""
    vocabulary.check(units)
    return torch.cat([torch.tensor([vocabulary.speech]), vocabulary.units_to_ids(units.codes)[0]])


def _units_and_end(vocabulary: Vocabulary, units: Units) -> Tensor:
    vocabulary.check(units)
    return torch.cat([vocabulary.units_to_ids(units.codes)[0], torch.tensor([vocabulary.end])])
