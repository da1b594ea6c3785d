"""How a model goes on where a recording ends: sense, variety, and likeness to what was said.

A continuation is rendered, a recognizer writes down what it hears, and the text is measured: how
probable a text LM finds it, how much it repeats itself and others, how much of what was really
said it foretells. Three texts of each recording are measured alike:

``alone``
    What the model said.
``with-prompt``
    The prompt, through tokenizer and vocoder, and what the model said: what the code of GSLM and
    slamkit measures.
``recorded``
    What was really said: the *oracle*, by which the recognizer's own errors can be seen.

Sources:
    Lakhotia et al. 2021 (GSLM), arXiv:2102.01192; Hassid et al. 2023 (TWIST), arXiv:2305.13009;
    Maimon et al. 2025 (slamkit), arXiv:2502.15814.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from speechlm.bundle import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.data.corpus import Recording, open_corpus
from speechlm.errors import InputError
from speechlm.evaluation.diversity import bleu
from speechlm.evaluation.recognizer import (
    SpeechRecognizer,
    WordModel,
)
from speechlm.evaluation.tasks.items import RIGHT, WRONG, Figure, Item
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.prompts import (
    Heard,
    Protocol,
    apart,
    bounded,
    choose_prompts,
    portions,
    prompts_sha256,
    seed_of,
    transcribe,
    try_hear,
)
from speechlm.evaluation.tasks.results import Result
from speechlm.evaluation.tasks.text_figures import (
    curve_figures,
    figures_of_texts,
    known_words,
    points,
    text_figures,
    words_of,
)
from speechlm.units import Units

Text = Literal["alone", "with-prompt", "recorded"]
TEXTS: tuple[Text, ...] = ("alone", "with-prompt", "recorded")
TEMPERATURES = (0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5)
"""Of the curve. Units are drawn among all, as GSLM does."""


def run_continuation(job: Job) -> Iterator[Result]:
    """Continuations at one temperature."""
    yield from continuation_rows(job, job.recognizer(), job.word_model())


def run_continuation_curve(job: Job) -> Iterator[Result]:
    """Continuations at many temperatures."""
    yield from curve_rows(job, job.recognizer(), job.word_model())


def continuation_rows(
    job: Job,
    recognizer: SpeechRecognizer,
    text_lm: WordModel,
    protocol: Protocol | None = None,
) -> Iterator[Result]:
    """All figures of continuations at one temperature.

    Raises:
        CorpusError: No recording is long enough.
    """
    protocol = protocol or Protocol()
    model = job.system.bundle
    recordings = choose_prompts(open_corpus(job.given), protocol)
    sha256 = prompts_sha256(recordings, protocol)

    def score(left: Sequence[Recording]) -> Iterator[Item]:
        return score_continuations(
            model, left, recognizer=recognizer, text_lm=text_lm, protocol=protocol, seed=job.seed
        )

    items = job.run_items(
        recordings, score, sha256, "prompts", asr=recognizer.name, text_lm=text_lm.name
    )
    yield from job.rows(items, sha256, asr=recognizer.name, judge=text_lm.name)
    blank = job.row(data_sha256=sha256, asr=recognizer.name, judge=text_lm.name)
    for variant, found in figures_of_texts(items, TEXTS, job.seed):
        yield _filled(blank, variant, found)


def curve_rows(
    job: Job,
    recognizer: SpeechRecognizer,
    text_lm: WordModel,
    protocol: Protocol | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Iterator[Result]:
    """Figures of each temperature, of the recordings, and of the curve between them.

    Raises:
        CorpusError: No recording is long enough.
    """
    protocol = replace(protocol or Protocol(), sampling=SamplingConfig())
    model = job.system.bundle
    recordings = choose_prompts(open_corpus(job.given), protocol)
    sha256 = prompts_sha256(recordings, protocol, tuple(temperatures))
    todo = [(warmth, one) for warmth in (None, *temperatures) for one in recordings]

    def score(left: Sequence[tuple[float | None, Recording]]) -> Iterator[Item]:
        for warmth, part in groupby(left, key=lambda both: both[0]):
            texts: tuple[Text, ...] = ("recorded",) if warmth is None else ("alone",)
            sampling = SamplingConfig(temperature=warmth or 0.0)
            items = score_continuations(
                model,
                [one for _, one in part],
                recognizer=recognizer,
                text_lm=text_lm,
                protocol=replace(protocol, sampling=sampling),
                seed=job.seed,
                texts=texts,
            )
            for item in items:
                yield replace(item, subsets=(_subset(warmth),))

    about = {"asr": recognizer.name, "text_lm": text_lm.name}
    items = job.run_items(todo, score, sha256, "continuations", **about)
    for row in job.rows(items, sha256, asr=recognizer.name, judge=text_lm.name):
        if row.subset:  # all temperatures together say nothing
            yield row
    blank = job.row(data_sha256=sha256, asr=recognizer.name, judge=text_lm.name)
    parts = {
        warmth: [one for one in items if _subset(warmth) in one.subsets]
        for warmth in (None, *temperatures)
    }
    for warmth, part in parts.items():
        for variant, found in figures_of_texts(part, TEXTS, job.seed):
            yield _filled(replace(blank, subset=_subset(warmth)), variant, found)
    oracle = points(parts[None], "recorded")
    sweep = [points(parts[warmth], "alone") for warmth in temperatures]
    for variant, value, ci95, why in curve_figures(oracle, sweep, job.seed):
        known = value is not None
        yield replace(
            blank,
            variant=variant,
            value=value,
            ci95=ci95,
            n=len(recordings) if known else 0,
            error=why,
        )


def score_continuations(
    model: SpeechLM,
    recordings: Sequence[Recording],
    *,
    recognizer: SpeechRecognizer,
    text_lm: WordModel,
    protocol: Protocol | None = None,
    seed: int = 0,
    texts: Sequence[Text] = TEXTS,
) -> Iterator[Item]:
    """Continue recordings and measure what is said; an item each, in order.

    An item's ``note`` has the seed, how units were drawn, the texts and their log-probabilities.
    A recording that cannot be used gives an item with an error; a continuation of no units, or
    in which no word is heard, counts in ``empty-output`` and ``alone/empty`` and has no
    perplexity.

    Args:
        model: The whole chain.
        recordings: Each longer than the prompt.
        recognizer: What hears, such as :class:`speechlm.evaluation.recognizer.Recognizer` or
            :class:`speechlm.evaluation.hub_models.WhisperRecognizer`.
        text_lm: What says how probable a text is, such as
            :class:`speechlm.evaluation.recognizer.TrigramModel` or
            :class:`speechlm.evaluation.hub_models.HubTextModel`.
        protocol: How to continue.
        seed: Decides all draws, with the recordings' ids.
        texts: Which to measure; nothing is generated for ``recorded`` alone.
    """
    protocol = protocol or Protocol()
    drawn = bounded(model, protocol, protocol.sampling)
    generates = set(texts) != {"recorded"}
    for portion in portions(recordings):
        heard = try_hear(model, portion, protocol)
        usable = [one for one in heard.values() if not isinstance(one, str)]
        spoken: dict[str, _Spoken | str] = {}
        if generates:
            spoken = _speak(model, usable, protocol, drawn, seed)
        transcripts = _transcripts(model, usable, spoken, recognizer, texts)
        for recording in portion:
            found, said = heard[recording.id], spoken.get(recording.id)
            error = next((one for one in (found, said) if isinstance(one, str)), "")
            if error or isinstance(found, str) or isinstance(said, str):
                yield Item(id=recording.id, error=error)
                continue
            of_one = transcripts[recording.id]
            item = _item(recording, found, said, of_one, text_lm, protocol)
            if generates:
                settings = {"sampling": asdict(drawn), "prompt_s": protocol.prompt_s}
                about = {"seed": seed_of(seed, recording.id), **settings}
                item = replace(item, note={**about, **item.note})
            yield item


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spoken:
    units: Units
    wave: Tensor
    """Cut to the length of what was really said."""
    whole: Tensor
    """After the prompt."""
    full_s: float
    """Before it was cut."""


def _speak(
    model: SpeechLM, usable: Sequence[Heard], protocol: Protocol, drawn: SamplingConfig, seed: int
) -> dict[str, _Spoken | str]:
    def work(part: Sequence[Heard]) -> list[Units]:
        seeds = [seed_of(seed, one.recording.id) for one in part]
        return model.continue_units([one.units for one in part], sampling=drawn, seeds=seeds)

    found: dict[str, _Spoken | str] = {}
    rate = model.sample_rate
    for one, units in zip(usable, apart(work, usable), strict=True):
        name = one.recording.id
        if isinstance(units, str):
            found[name] = units
            continue
        voice = model.voice_of(one.prompt, model.tokenizer.sample_rate)
        prompt = model.vocoder.decode([one.units], speaker=voice)[0]
        wave = prompt[:0]
        if units.codes.shape[1]:
            wave = model.vocoder.decode([units], speaker=voice)[0]
        if not bool(wave.isfinite().all()):
            found[name] = "the vocoder gave sound that is no number"
            continue
        cut = wave[: round(one.rest_s * rate)]
        found[name] = _Spoken(
            units=units, wave=cut, whole=torch.cat([prompt, cut]), full_s=len(wave) / rate
        )
    return found


def _transcripts(
    model: SpeechLM,
    usable: Sequence[Heard],
    spoken: Mapping[str, _Spoken | str],
    recognizer: SpeechRecognizer,
    texts: Sequence[Text],
) -> dict[str, dict[Text, str]]:
    """What is heard, by recording and text; each of the two rates in one go."""
    found: dict[str, dict[Text, str]] = {one.recording.id: {} for one in usable}
    made: list[tuple[str, Text, Tensor]] = []
    for name, said in spoken.items():
        if not isinstance(said, str):
            both: dict[Text, Tensor] = {"alone": said.wave, "with-prompt": said.whole}
            made += [(name, text, wave) for text, wave in both.items() if text in texts]
    recorded: list[tuple[str, Text, Tensor]] = []
    if "recorded" in texts:
        recorded = [(one.recording.id, "recorded", one.rest) for one in usable]
    for rows, rate in ((made, model.sample_rate), (recorded, model.tokenizer.sample_rate)):
        waves = [wave for _, _, wave in rows]
        for (name, text, _), words in zip(rows, transcribe(recognizer, waves, rate), strict=True):
            found[name][text] = words
    return found


def _item(
    recording: Recording,
    heard: Heard,
    said: _Spoken | None,
    transcripts: Mapping[Text, str],
    text_lm: WordModel,
    protocol: Protocol,
) -> Item:
    figures: dict[str, tuple[float, float]] = {}
    log_probs: dict[str, tuple[float, int]] = {}
    try:
        for text, transcript in transcripts.items():
            of_text, log_probs[text] = text_figures(text, transcript, text_lm)
            figures |= of_text
    except InputError as error:
        return Item(id=recording.id, note={"transcripts": dict(transcripts)}, error=str(error))
    if said is not None:
        figures["empty-output"] = WRONG if said.units.codes.shape[1] else RIGHT
        figures["seconds"] = (said.full_s, 1.0)
        figures["units-per-second"] = (float(said.units.codes.numel()), said.full_s)
    if "alone" in transcripts:
        candidates = [words_of(transcripts["alone"])]
        until_s = protocol.prompt_s + heard.rest_s
        truths = {"text": known_words(recording, protocol.prompt_s, until_s)}
        if "recorded" in transcripts:
            truths["heard"] = words_of(transcripts["recorded"])
        for name, truth in truths.items():
            if truth:
                figures[f"continuation-bleu2-{name}"] = (100 * bleu(truth, candidates), 1.0)
    note = {"transcripts": dict(transcripts), "log_prob": log_probs}
    return Item(id=recording.id, figures=figures, note=note)


def _filled(blank: Result, variant: str, found: Figure) -> Result:
    return replace(blank, variant=variant, value=found.value, ci95=found.ci95, n=found.n)


def _subset(warmth: float | None) -> str:
    return "recorded" if warmth is None else f"temperature={warmth:g}"
