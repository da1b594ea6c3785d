"""Layouts by name, each with its options, and the papers they come from."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speechlm.errors import CheckpointError, ConfigError
from speechlm.layouts.chain import Chain
from speechlm.layouts.interleave import InterleaveChunks, InterleaveWords
from speechlm.layouts.merged import Merged
from speechlm.layouts.monologue import Monologue
from speechlm.layouts.patterns import Delays, Groups, Stages
from speechlm.layouts.plan import PlannedLayout, Spec
from speechlm.layouts.text_first import TextFirst
from speechlm.layouts.units_layout import UnitsLayout


def flat(spec: Spec, *, collapse: bool = False, question_weight: float = 0.0) -> UnitsLayout:
    """One stream in one row; ``collapse`` merges repeats.

    Sources: GSLM, arXiv:2102.01192; TWIST, arXiv:2305.13009.
    """
    expect_codebooks(spec, 1, "flattened, parallel, delay and coarse-first take several")
    return UnitsLayout(
        spec=spec,
        pattern=Stages(((0,),)),
        collapse=collapse,
        question_weight=question_weight,
    )


def flattened(
    spec: Spec, *, stream_weights: Sequence[float] = (), question_weight: float = 0.0
) -> UnitsLayout:
    """The K codebooks of a frame one after another in one row, each in its own range of ids.

    Source: MusicGen's flattening pattern, arXiv:2306.05284.
    """
    return UnitsLayout(
        spec=spec,
        pattern=Stages((tuple(range(spec.num_codebooks)),)),
        stream_weights=tuple(stream_weights),
        question_weight=question_weight,
    )


def parallel(
    spec: Spec, *, stream_weights: Sequence[float] = (), question_weight: float = 0.0
) -> UnitsLayout:
    """A row a codebook, a frame a column.

    Source: MusicGen's parallel pattern, arXiv:2306.05284.
    """
    return UnitsLayout(
        spec=spec,
        pattern=Delays((0,) * spec.num_codebooks),
        stream_weights=tuple(stream_weights),
        question_weight=question_weight,
    )


def delay(
    spec: Spec,
    *,
    delays: Sequence[int] | None = None,
    stream_weights: Sequence[float] = (),
    question_weight: float = 0.0,
) -> UnitsLayout:
    """A row a codebook, row k moved right by ``delays[k]``; 0, 1, …, K - 1 if not given.

    Sources: MusicGen, arXiv:2306.05284; Moshi (0, 1, 1, …), arXiv:2410.00037.
    """
    delays = range(spec.num_codebooks) if delays is None else delays
    expect_count("delays", delays, spec.num_codebooks)
    expect_no_wait(delays)
    return UnitsLayout(
        spec=spec,
        pattern=Delays(tuple(delays)),
        stream_weights=tuple(stream_weights),
        question_weight=question_weight,
    )


def coarse_first(
    spec: Spec,
    *,
    stages: Sequence[Sequence[int]] | None = None,
    stream_weights: Sequence[float] = (),
    question_weight: float = 0.0,
) -> UnitsLayout:
    """One row, stage after stage, as [[0], [1, 2, 3], [4, 5]]; a codebook a stage if not given.

    Source: AudioLM, arXiv:2209.03143.
    """
    chosen = [[k] for k in range(spec.num_codebooks)] if stages is None else stages
    expect_count("codebooks in stages", [k for stage in chosen for k in stage], spec.num_codebooks)
    return UnitsLayout(
        spec=spec,
        pattern=Stages(tuple(tuple(stage) for stage in chosen)),
        stream_weights=tuple(stream_weights),
        question_weight=question_weight,
    )


def grouped(spec: Spec, *, size: int = 3, question_weight: float = 0.0) -> UnitsLayout:
    """``size`` units of one stream side by side in a column.

    Source: SLAM-Omni (semantic group modelling), arXiv:2412.15649.
    """
    expect_codebooks(spec, 1, "parallel and delay take several")
    return UnitsLayout(spec=spec, pattern=Groups(size), question_weight=question_weight)


def prosody(
    spec: Spec,
    *,
    shift: int = 1,
    duration_bins: int = 32,
    f0_bins: int = 32,
    stream_weights: Sequence[float] = (1.0, 0.5, 0.5),
    question_weight: float = 0.0,
) -> UnitsLayout:
    """Rows unit, duration and F0 of collapsed units; the last two ``shift`` columns later.

    A tokenizer of one codebook gets the two streams of bins beside its own; one of three brings
    them itself. Source: pGSLM, arXiv:2109.03264.
    """
    if spec.num_codebooks not in (1, 3):
        expect_codebooks(spec, 1, "or 3 with duration and F0 among them")
    return UnitsLayout(
        spec=spec,
        pattern=Delays((0, shift, shift)),
        side_streams=(duration_bins, f0_bins) if spec.num_codebooks == 1 else (),
        stream_weights=tuple(stream_weights),
        question_weight=question_weight,
    )


def merged(
    spec: Spec,
    *,
    within: bool = False,
    stream_weights: Sequence[float] = (),
    question_weight: float = 0.0,
) -> Merged:
    """Units with side streams among them in one row, each said only when it changes.

    Codebook 0 is the unit; ``within`` says what changes within a unit too, and the unit again.
    Source: Spirit-LM (expressive), arXiv:2402.05755.
    """
    return Merged(
        spec=spec,
        num_codebooks=spec.num_codebooks,
        within=within,
        stream_weights=tuple(stream_weights),
        question_weight=question_weight,
    )


def interleave_words(spec: Spec, *, text_weight: float = 1.0) -> InterleaveWords:
    """Spans of speech and of text take turns in one row, each opened by its mark.

    Sources: Spirit-LM, arXiv:2402.05755; SIMS, arXiv:2504.02398 (see ``spans.choose_spans``).
    """
    expect_codebooks(spec, 1, "text and several codebooks go together in text-parallel")
    return InterleaveWords(spec=spec, text_weight=text_weight)


def interleave_chunks(
    spec: Spec,
    *,
    text_chunk: int = 13,
    speech_chunk: int = 26,
    text_weight: float = 1.0,
    question_weight: float = 0.0,
) -> InterleaveChunks:
    """So many text tokens, so many units, in turn: speech streams while text leads.

    Sources: GLM-4-Voice (13:26), arXiv:2412.02612; OmniFlatten (2:10), arXiv:2410.17799.
    """
    expect_codebooks(spec, 1, "text and several codebooks go together in text-parallel")
    return InterleaveChunks(
        spec=spec,
        text_chunk=text_chunk,
        speech_chunk=speech_chunk,
        text_weight=text_weight,
        question_weight=question_weight,
    )


def chain(
    spec: Spec,
    *,
    question_text: bool = True,
    answer_text: bool = True,
    text_weight: float = 1.0,
    question_weight: float = 0.0,
) -> Chain:
    """Question, what was heard as text, the answer as text, the answer, one after another.

    Source: SpeechGPT (chain of modality), arXiv:2305.11000.
    """
    return Chain(
        spec=spec,
        num_codebooks=spec.num_codebooks,
        question_text=question_text,
        answer_text=answer_text,
        text_weight=text_weight,
        question_weight=question_weight,
    )


def text_parallel(
    spec: Spec,
    *,
    timed: bool = False,
    delays: Sequence[int] | None = None,
    text_weight: float = 1.0,
    text_pad_weight: float = 0.5,
    stream_weights: Sequence[float] = (),
    question_weight: float = 0.0,
) -> TextFirst | Monologue:
    """A text row above K audio rows: written first, or ``timed``, each word at its frame.

    ``delays`` are the text's and each codebook's: 0, 1, 2, … if not given, 0, 0, 1, 1, … timed.
    Sources: Mini-Omni, arXiv:2408.16725; Moshi (timed), arXiv:2410.00037.
    """
    num_codebooks = spec.num_codebooks
    chosen = tuple(delays or (0, *(range(1, num_codebooks + 1))))
    if timed and delays is None:
        chosen = (0, *acoustic_delays(num_codebooks))
    expect_count("delays, the text's first", chosen, 1 + num_codebooks)
    if not timed:
        if chosen[0]:
            raise ConfigError(f"expected text without delay, got {list(chosen)}; or set timed=true")
        return TextFirst(
            spec=spec,
            delays=chosen[1:],
            text_weight=text_weight,
            stream_weights=tuple(stream_weights),
            question_weight=question_weight,
        )
    expect_no_wait(chosen)
    return Monologue(
        spec=spec,
        num_codebooks=num_codebooks,
        text=True,
        other=False,
        delays=chosen,
        text_weight=text_weight,
        text_pad_weight=text_pad_weight,
        stream_weights=tuple(stream_weights),
        question_weight=question_weight,
    )


def duplex(
    spec: Spec,
    *,
    text: bool = False,
    delays: Sequence[int] | None = None,
    text_weight: float = 1.0,
    text_pad_weight: float = 0.5,
    stream_weights: Sequence[float] = (),
    other_weight: float = 1.0,
    onset_weight: float = 1.0,
) -> Monologue:
    """Two speakers side by side: own rows, the other's, and with ``text`` what oneself says.

    ``delays`` are the text's, own and the other's: 0 for text and each first codebook, 1 for the
    others, if not given. Sources: dGSLM, arXiv:2203.16502; Moshi (text + 8 + 8),
    arXiv:2410.00037; NTPP (pairs), arXiv:2506.00975.
    """
    speaker = acoustic_delays(spec.num_codebooks)
    chosen = tuple([0] * text + speaker + speaker if delays is None else delays)
    expect_count("delays", chosen, int(text) + 2 * spec.num_codebooks)
    expect_no_wait(chosen)
    return Monologue(
        spec=spec,
        num_codebooks=spec.num_codebooks,
        text=text,
        other=True,
        delays=chosen,
        text_weight=text_weight,
        text_pad_weight=text_pad_weight,
        stream_weights=tuple(stream_weights),
        other_weight=other_weight,
        onset_weight=onset_weight,
    )


LAYOUTS: dict[str, Callable[..., PlannedLayout]] = {
    "flat": flat,
    "flattened": flattened,
    "parallel": parallel,
    "delay": delay,
    "coarse-first": coarse_first,
    "grouped": grouped,
    "prosody": prosody,
    "merged": merged,
    "interleave-words": interleave_words,
    "interleave-chunks": interleave_chunks,
    "chain": chain,
    "text-parallel": text_parallel,
    "duplex": duplex,
}
"""Every layout's maker; its docstring says what it is, its keyword arguments are the options."""


def build_layout(name: str, options: Mapping[str, Any], num_codebooks: int) -> PlannedLayout:
    """The layout ``name`` for a tokenizer of ``num_codebooks``.

    Raises:
        ConfigError: An unknown name or option, with the nearest known one; options that
            contradict each other or the number of codebooks.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"unknown layout {name!r}; {nearest(name, LAYOUTS)}")
    if num_codebooks < 1:
        raise ConfigError(f"expected a tokenizer of at least 1 codebook, got K = {num_codebooks}")
    known = layout_options(name)
    for key in options:
        if key not in known:
            raise ConfigError(f"the layout {name!r} has no option {key!r}; {nearest(key, known)}")
    chosen = {key: _frozen(options.get(key, default)) for key, default in known.items()}
    for key, value in chosen.items():
        expected = _expected_type(key, value, known[key])
        if expected:
            raise ConfigError(f"the layout {name!r} takes {key} as {expected}, got {value!r}")
    spec = Spec(name=name, num_codebooks=num_codebooks, options=tuple(chosen.items()))
    return LAYOUTS[name](spec, **chosen)


def _expected_type(key: str, value: Any, default: Any) -> str:
    """What an option should be, if ``value`` is not; else empty."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return "" if is_number and isinstance(value, int) else "a whole number"
    if isinstance(default, float):
        return "" if is_number and value >= 0 else "a number of 0 or more"
    if value is None and default is None:
        return ""
    # Weights are any numbers; what is None by default (delays, stages) is whole ones.
    whole = default is None
    kinds = (int,) if whole else (int, float)
    rows = value if key == "stages" else (value,)
    fits = isinstance(rows, tuple) and all(
        isinstance(row, tuple) and all(type(part) in kinds for part in row) for row in rows
    )
    lists = "lists" if key == "stages" else "a list"
    return "" if fits else f"{lists} of {'whole ' * whole}numbers"


def layout_options(name: str) -> dict[str, Any]:
    """The options of a layout and their defaults."""
    parameters = inspect.signature(LAYOUTS[name]).parameters
    return {key: value.default for key, value in parameters.items() if key != "spec"}


def layout_from_dict(values: Mapping[str, Any]) -> PlannedLayout:
    """Undo :meth:`~speechlm.layouts.grid.Layout.to_dict`.

    Raises:
        CheckpointError: A key is missing.
    """
    missing = {"name", "num_codebooks", "options"} - values.keys()
    if missing:
        raise CheckpointError(f"a saved layout lacks {', '.join(sorted(missing))}")
    return build_layout(values["name"], values["options"], int(values["num_codebooks"]))


def acoustic_delays(num_codebooks: int) -> list[int]:
    """Moshi's: the first codebook, which is semantic, one column before the others."""
    return [0] + [1] * (num_codebooks - 1)


def expect_codebooks(spec: Spec, expected: int, otherwise: str) -> None:
    """Refuse a tokenizer of another number of codebooks with a ConfigError."""
    if spec.num_codebooks != expected:
        raise ConfigError(
            f"the layout {spec.name!r} takes a tokenizer of {expected} codebook, got one of "
            f"{spec.num_codebooks}; {otherwise}"
        )


def expect_count(what: str, values: Sequence[Any], expected: int) -> None:
    """Refuse another number of values than one a codebook with a ConfigError."""
    if len(values) != expected:
        raise ConfigError(f"expected {expected} {what}, got {len(values)}: {list(values)}")


def expect_no_wait(delays: Sequence[int]) -> None:
    """Refuse delays that all streams share, which would be empty columns, with a ConfigError."""
    if min(delays) > 0:
        raise ConfigError(
            f"expected a stream without delay, got {list(delays)}; take {min(delays)} off each"
        )


def nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(known) or 'none'}"


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list | tuple) else value
