"""Layouts by name, each with its options, and the papers they come from."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speechlm.errors import CheckpointError, ConfigError
from speechlm.layouts.patterns import Delays, Groups, Stages
from speechlm.layouts.plan import PlannedLayout, Spec
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


LAYOUTS: dict[str, Callable[..., PlannedLayout]] = {
    "flat": flat,
    "flattened": flattened,
    "parallel": parallel,
    "delay": delay,
    "coarse-first": coarse_first,
    "grouped": grouped,
    "prosody": prosody,
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
    spec = Spec(name=name, num_codebooks=num_codebooks, options=tuple(chosen.items()))
    try:
        return LAYOUTS[name](spec, **chosen)
    except TypeError as error:  # a number where a list belongs, or the like
        raise ConfigError(f"an option of the layout {name!r} is of a wrong type: {error}") from None


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
