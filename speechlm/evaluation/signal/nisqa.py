"""NISQA: speech quality and four reasons for it, 1 to 5; its weights come from the hub.

``mos`` is the quality as a whole; ``noi`` noisiness, ``dis`` discontinuity, ``col`` coloration and
``loud`` loudness say what lowers it, 5 where nothing does. It hears 48 kHz, so what a recording of
a lower rate lacks counts as coloration. The weights are CC BY-NC-SA 4.0: not for commercial use.

Source:
    Mittag et al. 2021, arXiv:2104.09494; version 2.0 of the network.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.errors import CheckpointError, InputError

SAMPLE_RATE = 48_000
FIGURES = ("mos", "noi", "dis", "col", "loud")
WEIGHTS = (
    "https://github.com/gabrielmittag/NISQA/raw/fe84f0f252abec382b24367d5b22498a7ce34dbb/"
    "weights/nisqa.tar"
)
WEIGHTS_SHA256 = "7ec4cf937514dd3f8860b21e66fabd8ca87a168572675ef8d979c4c4ad2e805c"

_FFT, _WINDOW, _HOP = 4096, 960, 480
_MELS, _HIGHEST_HZ = 48, 20_000.0
_SEGMENT, _SEGMENT_HOP = 15, 4
_MOST_SEGMENTS = 1300
_POOLS = {1: (24, 7), 2: (12, 5), 4: (6, 3)}
"""What the maps of a layer of the first network are brought to."""
_CONVOLUTIONS, _LAYERS = 6, 2


class NISQA:
    """Rates recordings; make one and keep it.

    Args:
        weights: Address or path of ``nisqa.tar``.
        sha256: Of it.

    Raises:
        CheckpointError: It cannot be downloaded, or is another than the pinned one.
    """

    def __init__(self, weights: str = WEIGHTS, *, sha256: str = WEIGHTS_SHA256) -> None:
        from speechlm_tokenizers.downloads import check_sha256, fetch

        path = fetch(weights)
        check_sha256(path, sha256, "NISQA")
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            self._state: Mapping[str, Tensor] = checkpoint["model_state_dict"]
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: expected the weights of NISQA ({reason})") from error
        if missing := {f"pool_layers.{len(FIGURES) - 1}.model.linear3.bias"} - set(self._state):
            raise CheckpointError(f"{path}: expected the weights of NISQA, with {missing.pop()}")

    @torch.inference_mode()
    def rate(self, wave: Tensor) -> dict[str, float]:
        """Rate float32 [T] at 48 kHz: each of :data:`FIGURES`, about 1 (bad) to 5 (excellent).

        Raises:
            InputError: Shorter than 0.15 s or longer than 52 s.
        """
        mels = _log_mels(wave)
        segments = mels.unfold(1, _SEGMENT, _SEGMENT_HOP) if mels.shape[1] >= _SEGMENT else mels
        if segments.ndim < 3 or segments.shape[1] > _MOST_SEGMENTS:
            raise InputError("NISQA cannot rate it: expected 0.15 to 52 s of sound")
        features = self._over_time(self._of_segments(segments.transpose(0, 1)[:, None]))
        return {name: self._pooled(features, head) for head, name in enumerate(FIGURES)}

    def _of_segments(self, maps: Tensor) -> Tensor:
        """Mel spectra [S, 1, 48, 15] to features [S, 384]."""
        for layer in range(1, _CONVOLUTIONS + 1):
            # The last one takes all that is left of the width.
            padding = (1, 1) if layer < _CONVOLUTIONS else (1, 0)
            maps = F.conv2d(maps, *self._linear(f"cnn.model.conv{layer}"), padding=padding)
            norm = f"cnn.model.bn{layer}"
            moments = self._state[f"{norm}.running_mean"], self._state[f"{norm}.running_var"]
            maps = F.relu(F.batch_norm(maps, *moments, *self._linear(norm)))
            if layer in _POOLS:
                maps = F.adaptive_max_pool2d(maps, _POOLS[layer])
        return maps.flatten(1)

    def _over_time(self, features: Tensor) -> Tensor:
        """Features [S, 384] to [S, 64]: self-attention of one head, norms after each part."""
        hidden = self._normed(F.linear(features, *self._linear("time_dependency.model.linear")), "")
        for layer in range(_LAYERS):
            name = f"layers.{layer}."
            attention = f"time_dependency.model.{name}self_attn."
            mixed = F.linear(
                hidden,
                self._state[f"{attention}in_proj_weight"],
                self._state[f"{attention}in_proj_bias"],
            )
            query, key, value = (part[None] for part in mixed.chunk(3, dim=1))
            heard = F.scaled_dot_product_attention(query, key, value)[0]
            heard = F.linear(heard, *self._linear(f"{attention}out_proj"))
            hidden = self._normed(hidden + heard, name)
            inner = F.relu(F.linear(hidden, *self._linear(f"time_dependency.model.{name}linear1")))
            inner = F.linear(inner, *self._linear(f"time_dependency.model.{name}linear2"))
            hidden = self._normed(hidden + inner, name, number=2)
        return hidden

    def _pooled(self, features: Tensor, head: int) -> float:
        """Features [S, 64] to a rating: a mean whose weights are learned."""
        first, second, third = (
            self._linear(f"pool_layers.{head}.model.linear{number}") for number in (1, 2, 3)
        )
        weights = F.linear(F.relu(F.linear(features, *first)), *second).softmax(dim=0)
        return float(F.linear((weights * features).sum(dim=0), *third))

    def _normed(self, values: Tensor, layer: str, *, number: int = 1) -> Tensor:
        weight, bias = self._linear(f"time_dependency.model.{layer}norm{number}")
        return F.layer_norm(values, weight.shape, weight, bias)

    def _linear(self, name: str) -> tuple[Tensor, Tensor]:
        return self._state[f"{name}.weight"], self._state[f"{name}.bias"]


@lru_cache(1)
def nisqa() -> NISQA:
    """The one of this process."""
    return NISQA()


def _log_mels(wave: Tensor) -> Tensor:
    """Amplitudes of mel bands in dB, no lower than 80 below the loudest, float32 [48, frames]."""
    if len(wave) <= _FFT // 2:
        raise InputError("NISQA cannot rate it: expected 0.15 to 52 s of sound")
    spectra = torch.stft(
        wave,
        n_fft=_FFT,
        hop_length=_HOP,
        win_length=_WINDOW,
        window=torch.hann_window(_WINDOW),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    ).abs()
    decibels = 20 * (_filters().T @ spectra).clamp(min=1e-4).log10()
    return decibels.clamp(min=float(decibels.max()) - 80)


@lru_cache(1)
def _filters() -> Tensor:
    import torchaudio.functional

    filters: Tensor = torchaudio.functional.melscale_fbanks(
        _FFT // 2 + 1, 0.0, _HIGHEST_HZ, _MELS, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return filters
