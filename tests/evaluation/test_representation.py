"""PNMI and purities by hand, by scikit-learn, and on labels that mean nothing."""

import pytest
import torch

from speechlm.data.corpus import Word
from speechlm.evaluation.representation import PAUSE, phone_agreement, phones_of_frames


def test_units_that_are_phones_tell_all_and_one_unit_tells_nothing() -> None:
    phones = ["a", "b", "c", "a", PAUSE, "b"]
    same = phone_agreement(torch.tensor([7, 3, 900, 7, 5, 3]), phones)
    assert same == {
        "pnmi": pytest.approx(1.0),
        "phone_purity": 1.0,
        "cluster_purity": 1.0,
        "frames": 5,
        "phones": 3,
    }
    none = phone_agreement(torch.zeros(6, dtype=torch.int64), phones)
    assert none["pnmi"] == pytest.approx(0.0, abs=1e-12)
    assert none["phone_purity"] == pytest.approx(2 / 5)
    assert none["cluster_purity"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="pauses only"):
        phone_agreement(torch.zeros(2, dtype=torch.int64), [PAUSE, PAUSE])


def test_it_is_scikit_learns_mutual_information_by_the_phones_entropy() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(3)
    phones = [str(int(p)) for p in torch.randint(0, 9, (400,), generator=generator)]
    units = torch.tensor([int(p) for p in phones]) * 2
    units = torch.where(torch.rand(400, generator=generator) < 0.5, units, units.roll(5))
    information = metrics.mutual_info_score(phones, units.tolist())
    counts = torch.tensor([phones.count(p) for p in set(phones)]).double() / 400
    entropy = float(-(counts * counts.log()).sum())
    assert phone_agreement(units, phones)["pnmi"] == pytest.approx(information / entropy)


def test_a_frame_has_the_phone_at_its_middle() -> None:
    labels = phones_of_frames([Word("a", 0.0, 0.04), Word("b", 0.06, 0.2)], 6, 50.0)
    assert labels == ["a", "a", PAUSE, "b", "b", "b"]
