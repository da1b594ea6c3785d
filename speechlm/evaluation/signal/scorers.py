"""Every measure of recordings by its name: what it needs, where it comes from, what it gives.

A scorer is in one of three states: *embedded*, it works without a network; *hub*, it is
downloaded when it is asked for by name, pinned; *unavailable*, and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechlm.audio import prepare
from speechlm.errors import SpeechLMError
from speechlm.evaluation.recognizer import Recognizer
from speechlm.evaluation.signal import nisqa, utmos
from speechlm.evaluation.signal.error_rates import (
    count_edits,
    jiwer_package,
    normalise,
    pronounce,
)
from speechlm.evaluation.signal.intrusive import (
    aligned_figures,
    mel_distance,
    pesq,
    pesq_package,
    si_sdr,
    stoi,
    stoi_package,
)
from speechlm.evaluation.signal.mos import dnsmos, plcmos
from speechlm.speaker import default_speaker_encoder

SAMPLE_RATE = 16_000
"""All but NISQA hears this rate, Hz, so nothing that lies above 8 kHz."""
OF_REFERENCE = "/reference"
"""Ends the name of a figure that is the reference's own: what the best could have."""
RECOGNIZED = ("wer", "cer", "per")
"""How the names of figures begin that a recognizer has a part in."""

Figures = dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """A recording, and what it is measured against; goes to another process as it is."""

    wave: npt.NDArray[np.float32]
    """float32 [T]."""
    sample_rate: int
    reference: npt.NDArray[np.float32]
    reference_rate: int
    text: str | None = None
    """What is said in it."""


class Take:
    """A sample at the rate of the scorers; raises AudioError if there is nothing to hear."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        (_, self.wave), (_, self.reference) = self.both()
        self.text = None if sample.text is None else normalise(sample.text)

    def both(self, sample_rate: int = SAMPLE_RATE) -> Iterator[tuple[str, Tensor]]:
        """The recording and its reference, with what ends the names of their figures."""
        for end, name, wave, rate in (
            ("", "the recording", self._sample.wave, self._sample.sample_rate),
            (OF_REFERENCE, "the reference", self._sample.reference, self._sample.reference_rate),
        ):
            yield end, prepare(torch.from_numpy(wave), rate, sample_rate, name=name)


@dataclass(kw_only=True, slots=True)
class Measured:
    """What scorers say of a sample."""

    figures: Figures = field(default_factory=dict)
    """Sum and count by figure."""
    note: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Why a scorer says nothing of this one."""
    error: str = ""
    """Why none does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """One way to measure recordings."""

    needs: Literal["nothing", "reference", "text or reference"]
    measure: Callable[[Take, Measured], None]
    """Adds its figures; raises SpeechLMError if a recording does not allow them."""
    load: Callable[[], object] = bool
    """Makes ready what it needs; raises SpeechLMError if that is not there."""
    hub: str = ""
    """Where it is downloaded from, pinned; empty for one that is embedded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Whether a scorer can be used."""

    kind: Literal["embedded", "hub", "unavailable"]
    why: str = ""
    """Where a hub's comes from, or what is missing."""


def state_of(name: str) -> State:
    """Find out, without a download."""
    scorer = SCORERS[name]
    if scorer.hub:
        return State(kind="hub", why=scorer.hub)
    try:
        scorer.load()
    except SpeechLMError as error:
        return State(kind="unavailable", why=str(error))
    return State(kind="embedded")


def choose(names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Those that can be used, and why others cannot.

    Args:
        names: What is wanted, which may download something; None for all that is embedded.
    """
    usable, missing = [], {}
    wanted = [name for name, one in SCORERS.items() if not one.hub] if names is None else names
    for name in wanted:
        if name not in SCORERS:
            missing[name] = f"no such scorer; there are {', '.join(SCORERS)}"
            continue
        try:
            SCORERS[name].load()
        except SpeechLMError as error:
            missing[name] = str(error)
        else:
            usable.append(name)
    return usable, missing


def measure(sample: Sample, names: Sequence[str]) -> Measured:
    """What scorers say of a sample, those that its recordings allow."""
    measured = Measured()
    try:
        take = Take(sample)
    except SpeechLMError as error:
        return Measured(error=str(error))
    for name in names:
        try:
            SCORERS[name].measure(take, measured)
        except SpeechLMError as error:
            measured.left_out[name] = str(error)
    return measured


def _dnsmos(take: Take, measured: Measured) -> None:
    for end, wave in take.both():
        rating = dnsmos().rate(wave, SAMPLE_RATE)
        for name in ("sig", "bak", "ovrl", "p808"):
            measured.figures[f"dnsmos_{name}{end}"] = (getattr(rating, name), 1.0)


def _plcmos(take: Take, measured: Measured) -> None:
    for end, wave in take.both():
        measured.figures[f"plcmos{end}"] = (plcmos().rate(wave, SAMPLE_RATE), 1.0)


def _utmos(take: Take, measured: Measured) -> None:
    for end, wave in take.both():
        measured.figures[f"utmos{end}"] = (utmos.utmos().rate(wave), 1.0)


def _nisqa(take: Take, measured: Measured) -> None:
    for end, wave in take.both(nisqa.SAMPLE_RATE):
        found = nisqa.nisqa().rate(wave)
        measured.figures |= {f"nisqa_{name}{end}": (one, 1.0) for name, one in found.items()}


def _similarity(take: Take, measured: Measured) -> None:
    encoder = default_speaker_encoder()
    first, second = (encoder.embed(wave, SAMPLE_RATE) for _, wave in take.both())
    measured.figures["spk_similarity"] = (float(first @ second), 1.0)


def _one(name: str, compare: Callable[[Tensor, Tensor], float]) -> Callable[[Take, Measured], None]:
    def add(take: Take, measured: Measured) -> None:
        measured.figures[name] = (compare(take.wave, take.reference), 1.0)

    return add


def _stoi(take: Take, measured: Measured) -> None:
    found = stoi(take.wave, take.reference)
    measured.figures |= {name: (value, 1.0) for name, value in found.items()}


def _aligned(take: Take, measured: Measured) -> None:
    measured.figures |= aligned_figures(take.wave, take.reference)
    if "f0_corr" not in measured.figures:
        measured.left_out["f0"] = "no pitch that changes, in frames that are voiced in both"


def _error_rates(take: Take, measured: Measured) -> None:
    """Against the text, and against what is heard in the reference."""
    waves = [wave for _, wave in take.both()]
    recognizer = _recognizer()
    heard, heard_reference = map(normalise, recognizer.transcribe_many(waves, SAMPLE_RATE, 1))
    phones, reference_phones = recognizer.phones_many(waves, SAMPLE_RATE, 1)
    measured.note |= {"heard": heard, "heard_reference": heard_reference}
    compared = [("_heard", heard_reference, reference_phones, heard, phones)]
    if take.text:
        spelled = pronounce(take.text) or ""
        measured.note["text"] = take.text
        compared += [
            ("", take.text, spelled, heard, phones),
            (OF_REFERENCE, take.text, spelled, heard_reference, reference_phones),
        ]
    for end, words, expected_phones, found, found_phones in compared:
        if words:
            edits = count_edits(words, found, "words")
            measured.figures[f"wer{end}"] = edits.figure
            measured.figures[f"cer{end}"] = count_edits(words, found, "characters").figure
            measured.note.setdefault("edits", {})[f"wer{end}"] = [
                edits.deletions,
                edits.insertions,
                edits.substitutions,
                edits.hits,
            ]
        if expected_phones:
            measured.figures[f"per{end}"] = count_edits(
                expected_phones, found_phones, "words"
            ).figure


@lru_cache(1)
def _recognizer() -> Recognizer:
    jiwer_package()
    return Recognizer()


def recognizer_name() -> str:
    """As rows of results say it."""
    return _recognizer().name


SCORERS: Mapping[str, Scorer] = {
    "dnsmos": Scorer(needs="nothing", measure=_dnsmos, load=dnsmos),
    "plcmos": Scorer(needs="nothing", measure=_plcmos, load=plcmos),
    "error_rates": Scorer(needs="text or reference", measure=_error_rates, load=_recognizer),
    "speaker": Scorer(needs="reference", measure=_similarity, load=default_speaker_encoder),
    "mcd_f0": Scorer(needs="reference", measure=_aligned),
    "pesq": Scorer(needs="reference", measure=_one("pesq", pesq), load=pesq_package),
    "stoi": Scorer(needs="reference", measure=_stoi, load=stoi_package),
    "si_sdr": Scorer(needs="reference", measure=_one("si_sdr", si_sdr)),
    "mel_l1": Scorer(needs="reference", measure=_one("mel_l1", mel_distance)),
    "utmos": Scorer(
        needs="nothing",
        measure=_utmos,
        load=utmos.utmos,
        hub=f"{utmos.REPOSITORY}, {utmos.WEIGHTS}",
    ),
    "nisqa": Scorer(needs="nothing", measure=_nisqa, load=nisqa.nisqa, hub=nisqa.WEIGHTS),
}
"""In the order of their figures."""
