"""Reading aloud and writing down: what a bundle does outside of any conversation."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from speechlm.bundle import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.dialogue.messages import Samples
from speechlm.dialogue.resampling import StreamResampler
from speechlm.dialogue.service import SpeechRequest
from speechlm.errors import InputError
from speechlm.generation.generate import generate_stream
from speechlm.generation.rendering import FIRST_CHUNK_UNITS
from speechlm.layouts.grid import Content, Prompt
from speechlm.layouts.vocabulary import CONTROLS, check_units
from speechlm.protocols import Speaker

MAX_SPEECH_S = 600.0
"""Longer speech is to be asked for in parts."""
MAX_CHUNK_S = 0.5
"""Chunks double from the first one to this length: it comes soon, the rest costs little."""
SPEEDS = (0.25, 4.0)


def can_speak_text(model: SpeechLM) -> bool:
    """Whether its layout says a text that it is given."""
    return _has_text(model) and _try_prompt(model, _text_content(model, _probe())) is not None


def can_transcribe(model: SpeechLM) -> bool:
    """Whether its layout writes down a recording that it is given."""
    codes = torch.zeros(model.tokenizer.num_codebooks, 1, dtype=torch.int64)
    return _has_text(model) and _try_prompt(model, _heard_content(model, codes)) is not None


def speak(model: SpeechLM, request: SpeechRequest) -> Iterator[Samples]:
    """Read a text or units aloud.

    Returns:
        Pieces, float32 [n] each at ``request.sample_rate``; their sum does not depend on the cuts.

    Raises:
        InputError: The bundle does not speak text, the text is too long for it, units or voice
            are none of its own, or it cannot change the speed.
    """
    if (request.text is None) == (request.units is None):
        raise InputError("expected either text or units to be read aloud")
    if not SPEEDS[0] <= request.speed <= SPEEDS[1]:
        raise InputError(f"expected speed within {SPEEDS[0]}..{SPEEDS[1]}, got {request.speed}")
    if request.speed != 1 and getattr(model.tokenizer, "variable_rate", False):
        raise InputError("this bundle's units last unequally long; expected speed 1")
    speaker: Speaker | None = model.reply_voice if request.voice is None else request.voice
    stream = model.vocoder.stream(speaker)
    resampler = StreamResampler(model.sample_rate, request.sample_rate)
    num_frames = num_kept = 0
    codes = _chunked(model, request) if request.text is None else _said(model, request)
    for part in codes:
        num_frames += part.shape[1]
        # Frame i of the result is frame floor(i * speed) of the units.
        numbers = torch.arange(num_kept, math.ceil(num_frames / request.speed) + 1)
        wanted = (numbers.double() * request.speed).long()
        wanted = wanted[wanted < num_frames]
        num_kept += len(wanted)
        part = part[:, wanted - (num_frames - part.shape[1])]
        yield from _samples(resampler.push(stream.push(part)))
    yield from _samples(resampler.push(stream.finish()))
    yield from _samples(resampler.finish())


def transcribe(model: SpeechLM, samples: Samples, sample_rate: int) -> Generator[None, None, str]:
    """Write down a recording, float32 [T] at ``sample_rate``, a token at each step.

    Returns:
        The text, once all steps are done.

    Raises:
        InputError: The bundle does not transcribe, or the recording cannot be used, or is longer
            than its context.
    """
    if not can_transcribe(model):
        raise InputError("this bundle's layout does not write down what it hears")
    units = model.encode(torch.from_numpy(samples), sample_rate)
    model.lm.vocabulary.check(units)
    content = _heard_content(model, units.codes)
    prompt = model.lm.layout.prompt(model.lm.vocabulary, content)
    tokens: list[int] = []
    for column in _until_next_part(model, prompt, seed=0):
        tokens.append(column[0] - model.lm.vocabulary.first_text)
        yield
    text = model.lm.text_tokenizer
    assert text is not None
    return text.decode(tokens).strip()


def _said(model: SpeechLM, request: SpeechRequest) -> Iterator[Tensor]:
    """The units that the LM says a text with, int64 [K, m], as they are drawn."""
    if request.text is None or not can_speak_text(model):
        raise InputError("this bundle does not speak text; give it units")
    text = model.lm.text_tokenizer
    assert text is not None
    tokens = text.encode(request.text)
    if not len(tokens):
        raise InputError("expected a text of at least one token, got an empty one")
    vocabulary, layout = model.lm.vocabulary, model.lm.layout
    prompt = layout.prompt(vocabulary, _text_content(model, tokens))
    columns: list[tuple[int, ...]] = []
    given = 0
    drawn: Iterator[tuple[int, ...]]
    if _has_spans(model):
        drawn = _until_next_part(model, prompt, request.seed)
    else:
        drawn = generate_stream(
            model.lm, prompt, SamplingConfig(), request.seed, weights=model.weights
        )
    for column in drawn:
        columns.append(column)
        if len(columns) % FIRST_CHUNK_UNITS == 0:
            codes = layout.read(vocabulary, prompt, torch.tensor(columns).T)["speech"]
            yield codes[:, given:]
            given = codes.shape[1]
    if columns:
        yield layout.read(vocabulary, prompt, torch.tensor(columns).T)["speech"][:, given:]


def _chunked(model: SpeechLM, request: SpeechRequest) -> Iterator[Tensor]:
    """Units that were given, int64 [K, m] each, after a look at all of them."""
    rows, tokenizer = request.units or (), model.tokenizer
    if len(rows) != tokenizer.num_codebooks or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise InputError(
            f"expected units of {tokenizer.num_codebooks} codebooks, one list of the same length "
            f"each, got lengths {[len(row) for row in rows][:32]}"
        )
    if len(rows[0]) > MAX_SPEECH_S * tokenizer.frame_rate:
        raise InputError(f"expected units of at most {MAX_SPEECH_S:g} s; give them in parts")
    codes = torch.tensor(rows, dtype=torch.int64)
    sizes = getattr(tokenizer, "codebook_sizes", (tokenizer.vocab_size,) * len(rows))
    for row, size in zip(codes, sizes, strict=True):
        check_units(row, size)
    size, at = FIRST_CHUNK_UNITS, 0
    while at < codes.shape[1]:
        yield codes[:, at : at + size]
        at += size
        size = min(2 * size, max(FIRST_CHUNK_UNITS, round(MAX_CHUNK_S * tokenizer.frame_rate)))


def _until_next_part(model: SpeechLM, prompt: Prompt, seed: int) -> Iterator[tuple[int, ...]]:
    """Columns of a layout of one row, up to the mark that ends the present text or speech."""
    drawn = generate_stream(model.lm, prompt, SamplingConfig(), seed, weights=model.weights)
    for column in drawn:
        if column[0] < len(CONTROLS):
            return
        yield column


def _has_text(model: SpeechLM) -> bool:
    return model.lm.text_tokenizer is not None


def _has_spans(model: SpeechLM) -> bool:
    return any(field.kind == "spans" for field in model.lm.layout.fields)


def _probe() -> Tensor:
    return torch.zeros(1, dtype=torch.int64)


def _text_content(model: SpeechLM, tokens: Tensor) -> Content:
    """A text that is to be said, as the layout takes it."""
    if not _has_spans(model):
        return {"text": tokens}
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    spans = torch.tensor([[0, len(tokens)], [1, 0]])
    return {"text": tokens, "speech": nothing, "spans": spans}


def _heard_content(model: SpeechLM, codes: Tensor) -> Content:
    """Speech that is to be written down, as the layout takes it."""
    if not _has_spans(model):
        return {"question": codes}
    spans = torch.tensor([[1, codes.shape[1]], [0, 0]])
    return {"text": torch.zeros(0, dtype=torch.int64), "speech": codes, "spans": spans}


def _try_prompt(model: SpeechLM, content: Content) -> Prompt | None:
    layout = model.lm.layout
    names = {field.name for field in layout.fields}
    if "question" in content and "question_text" not in names:
        return None
    try:
        return layout.prompt(model.lm.vocabulary, content)
    except InputError:
        return None


def _samples(sound: Tensor) -> Iterator[Samples]:
    if len(sound):
        yield sound.detach().cpu().numpy()
