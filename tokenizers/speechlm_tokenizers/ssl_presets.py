"""Published pairs of an encoder and a k-means, as data.

``sha256`` is of the file of the k-means, as textlesslib's checkpoint manager publishes it; None
where nobody publishes one. Encoders are those of transformers' hub that were converted from the
original release; none of them has a published sum there.

The original tools pad recordings in other ways than :mod:`speechlm_tokenizers.ssl_features` does
(not at all, or by half a frame on either side), so units at the edges can differ from theirs.

Sources:
    https://github.com/facebookresearch/textlesslib (textless/checkpoint_manager/__init__.py);
    https://github.com/facebookresearch/fairseq (examples/textless_nlp/gslm/speech2unit,
    examples/speech_to_speech/docs/textless_s2st_real_data.md);
    https://github.com/slp-rl/slamkit (config/tokeniser); https://github.com/facebookresearch/
    seamless_communication (models/unit_extractor); https://github.com/facebookresearch/spiritlm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_FACEBOOK = "https://dl.fbaipublicfiles.com/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A published pair."""

    model: str
    """What ``tokenizer.options.model`` would be."""
    layer: int
    """Whose output the k-means was fitted on, counted as ``hidden_states`` is."""
    num_units: int
    kmeans: str | None
    """Where the k-means is; None where it is given only to those who ask for it."""
    sha256: str | None = None
    """Of the file of the k-means; None where none is published."""
    normalize: bool = False
    """Whether recordings were normalized when the k-means was fitted: not by fairseq's base
    models, whatever the extractor on the hub says."""
    licence: str
    """Of the encoder and of the k-means."""
    paper: str
    """Where the pair is described."""
    access: str = ""
    """How to get a k-means that has no address."""


def _gslm(num_units: int, sha256: str) -> Preset:
    return Preset(
        model="facebook/hubert-base-ls960",
        layer=6,
        num_units=num_units,
        kmeans=f"{_FACEBOOK}textless_nlp/gslm/hubert/km{num_units}/km.bin",
        sha256=sha256,
        licence="encoder Apache-2.0 on the hub (MIT in fairseq); k-means MIT (fairseq)",
        paper="Lakhotia et al. 2021 (GSLM), arXiv:2102.01192",
    )


_TWIST = Preset(
    model="slprl/mhubert-base-25hz",
    layer=11,
    num_units=500,
    kmeans=(
        f"{_FACEBOOK}textless_nlp/twist/speech_tokenizer/"
        "mhubert_base_25hz_cp_mls_cv_sp_fisher_L11_km500.bin"
    ),
    sha256="03cc04a9c24fec4285e73e709c485756d8f116aa8e724eac555de6a7cf8d28ad",
    licence="encoder MIT; k-means MIT (textlesslib)",
    paper=(
        "Hassid et al. 2023 (TWIST), arXiv:2305.13009; Maimon et al. 2025 (Slam), arXiv:2502.15814"
    ),
)

PRESETS: Mapping[str, Preset] = {
    "gslm-km50": _gslm(50, "d01a7d5bc2c54b7b5f25f321ba525b4d230b06e3927f90bad0394198bc89f494"),
    "gslm-km100": _gslm(100, "f14a3104615485381fc489701d6761c9abbdbb0d43607cf55518a1e2891023fe"),
    "gslm-km200": _gslm(200, "b3c46c9cdd1707ad852dd53c359aa73942e79d53c432a9a8a419ed046408024b"),
    "speechgpt": Preset(
        model="voidful/mhubert-base",
        layer=11,
        num_units=1000,
        kmeans=f"{_FACEBOOK}hubert/mhubert_base_vp_en_es_fr_it3_L11_km1000.bin",
        sha256="c70f5416c38044d0c20e33fdeedf4533974a8ac4029985cdef3b755038381a0b",
        licence="MIT (fairseq); the converted encoder on the hub states none",
        paper=(
            "Zhang et al. 2023 (SpeechGPT), arXiv:2305.11000; Lee et al. 2022 (textless S2ST), "
            "arXiv:2112.08352"
        ),
    ),
    "twist": _TWIST,
    "slam": _TWIST,
    "spirit-lm": Preset(
        model="slprl/mhubert-base-25hz",
        layer=11,
        num_units=500,
        kmeans=None,
        licence="encoder MIT; quantizer FAIR Noncommercial Research License",
        paper="Nguyen et al. 2024 (Spirit LM), arXiv:2402.05755",
        access=(
            "Meta gives it to those who ask, see https://github.com/facebookresearch/spiritlm: set "
            "tokenizer.options.kmeans to its speech_tokenizer/hubert_25hz/L11_quantizer_500.pt"
        ),
    ),
    "seamless": Preset(
        model="fairseq2:xlsr2_1b_v2",
        layer=35,
        num_units=10_000,
        kmeans=f"{_FACEBOOK}seamlessM4T/models/unit_extraction/kmeans_10k.npy",
        normalize=True,
        licence="CC-BY-NC-4.0 (SeamlessM4T's models); the unit extraction states none of its own",
        paper="Seamless Communication et al. 2023 (SeamlessM4T), arXiv:2308.11596",
    ),
}
"""By the name that ``tokenizer.options.preset`` takes."""
