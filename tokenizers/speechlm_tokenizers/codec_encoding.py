"""What the tokenizers of all codecs do alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechlm.errors import ConfigError
from speechlm.protocols import AudioTokenizer
from speechlm.units import Units


def encode_each(
    tokenizer: AudioTokenizer, wave: Tensor, lengths: Tensor | None = None
) -> list[Units]:
    """Tokenize each row of float32 [B, T] alone, by a stream to which all of it is pushed."""
    sizes = [wave.shape[1]] * wave.shape[0] if lengths is None else lengths.tolist()
    results = []
    for row, size in zip(wave, sizes, strict=True):
        stream = tokenizer.stream()
        codes = torch.cat([stream.push(row[:size]), stream.finish()], dim=1)
        results.append(
            Units(codes=codes, frame_rate=tokenizer.frame_rate, fingerprint=tokenizer.fingerprint)
        )
    return results


def no_codes(num_codebooks: int) -> Tensor:
    """Units of nothing, int64 [K, 0]."""
    return torch.zeros(num_codebooks, 0, dtype=torch.int64)


def choose_codebooks(
    num_codebooks: int | None,
    bandwidth_kbps: float | None,
    *,
    known: int,
    each_kbps: float,
    usual_kbps: float = math.inf,
) -> int:
    """How many residual codebooks are asked for.

    Args:
        num_codebooks: As many, where given.
        bandwidth_kbps: As many as fit into it, where given.
        known: How many the model has.
        each_kbps: What one of them takes.
        usual_kbps: The bandwidth where neither is given; all codebooks unless it is less.

    Raises:
        ConfigError: Both are given, or the model has not so many.
    """
    if num_codebooks is not None and bandwidth_kbps is not None:
        raise ConfigError("expected num_codebooks or bandwidth_kbps, got both; leave one out")
    if num_codebooks is not None:
        if not 1 <= num_codebooks <= known:
            raise ConfigError(
                f"num_codebooks: expected 1 to {known}, which the model has, got {num_codebooks}"
            )
        return num_codebooks
    if bandwidth_kbps is None:
        return known if usual_kbps >= known * each_kbps else max(1, int(usual_kbps / each_kbps))
    count = int(bandwidth_kbps / each_kbps + 1e-9)
    if not 1 <= count <= known:
        raise ConfigError(
            f"bandwidth_kbps: expected {each_kbps:g} to {known * each_kbps:g}, {each_kbps:g} for "
            f"each of the model's {known} codebooks, got {bandwidth_kbps:g}"
        )
    return count
