"""How well units stand for phones, where a corpus says which phone is said when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from speechlm.data.corpus import Word

PAUSE = ""
"""What frames outside of all phones are called."""


def phones_of_frames(phones: Sequence[Word], num_frames: int, frame_rate: float) -> list[str]:
    """The phone at the middle of each frame, :data:`PAUSE` for none.

    Args:
        phones: In order, with start and end in seconds.
        num_frames: Frames of the recording.
        frame_rate: Frames a second, Hz.
    """
    labels = [PAUSE] * num_frames
    for phone, start_s, end_s in phones:
        first = max(0, round(start_s * frame_rate))
        for frame in range(first, min(num_frames, round(end_s * frame_rate))):
            labels[frame] = phone
    return labels


def phone_agreement(units: Tensor, phones: Sequence[str]) -> dict[str, Any]:
    """What units and phones tell of each other.

    Args:
        units: The unit of each frame, int64 [F], of any numbering.
        phones: The phone of each frame; pauses are left out.

    Returns:
        ``pnmi``: mutual information of phones and units by the entropy of phones: how much of
        what there is to know of the phone a unit tells. ``phone_purity``: the share of frames
        whose phone is the commonest of their unit. ``cluster_purity``: the share whose unit is
        the commonest of their phone. ``frames`` and ``phones`` that were counted.

    Raises:
        ValueError: No frame has a phone.

    Source:
        Hsu et al. 2021 (HuBERT), arXiv:2106.07447, section 4.3.
    """
    spoken = [frame for frame, phone in enumerate(phones) if phone != PAUSE]
    if not spoken:
        raise ValueError("expected frames with phones, got pauses only")
    names = sorted({phones[frame] for frame in spoken})
    number = {name: index for index, name in enumerate(names)}
    rows = torch.tensor([number[phones[frame]] for frame in spoken])
    _, columns = torch.unique(units[torch.tensor(spoken)], return_inverse=True)
    width = int(columns.max()) + 1
    joint = torch.bincount(rows * width + columns, minlength=len(names) * width)
    joint = joint.reshape(len(names), width).double() / len(spoken)
    of_phones, of_units = joint.sum(dim=1), joint.sum(dim=0)
    expected = of_phones[:, None] * of_units
    seen = joint > 0
    information = (joint[seen] * (joint[seen] / expected[seen]).log()).sum()
    entropy = -(of_phones * of_phones.log()).sum()
    return {
        # One phone alone leaves nothing to know.
        "pnmi": float(information / entropy) if len(names) > 1 else 1.0,
        "phone_purity": float(joint.max(dim=0).values.sum()),
        "cluster_purity": float(joint.max(dim=1).values.sum()),
        "frames": len(spoken),
        "phones": len(names),
    }
