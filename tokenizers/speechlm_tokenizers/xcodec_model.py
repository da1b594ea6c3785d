"""X-Codec's shape, and the model of transformers made of it with what inference needs.

An X-Codec is a DAC beside a HuBERT or WavLM: frames of both together are quantized.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from speechlm.errors import CheckpointError
from speechlm.settings import build
from speechlm_tokenizers.codec_loading import empty, fill
from speechlm_tokenizers.dac_model import DacArchitecture

_SEMANTIC = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "layer_norm_eps", "feat_extract_norm", "feat_extract_activation"),
    *("conv_dim", "conv_stride", "conv_kernel", "conv_bias", "num_conv_pos_embeddings"),
    *("num_conv_pos_embedding_groups", "do_stable_layer_norm"),
)
SEMANTIC_FIELDS = {
    "hubert": (*_SEMANTIC, "feat_proj_layer_norm", "conv_pos_batch_norm"),
    "wavlm": (*_SEMANTIC, "num_buckets", "max_bucket_distance"),
}
"""What of a semantic model's configuration its output hangs on, by its ``model_type``."""

USUAL_ACOUSTIC = {
    "encoder_hidden_size": 64,
    "decoder_hidden_size": 1024,
    "hidden_size": 256,
    "downsampling_ratios": [8, 5, 4, 2],
    "upsampling_ratios": [8, 5, 4, 2],
}
"""The acoustic half where a checkpoint's configuration leaves it out."""

TRAINING_ONLY = ("decoder_semantic.", "fc1.", "semantic_model.masked_spec_embed")
ENCODER_ONLY = ("acoustic_encoder.", "encoder_semantic.", "semantic_model.", "fc.")
"""Tensors that the encoder alone reads."""
_CODEBOOK_TRAINING = ("inited", "cluster_size", "embed_avg")


@dataclass(frozen=True, kw_only=True, slots=True)
class XCodecArchitecture:
    """Sizes of an X-Codec."""

    acoustic: DacArchitecture
    semantic_type: str
    """A key of :data:`SEMANTIC_FIELDS`."""
    semantic: dict[str, Any]
    """Fields of the semantic model's configuration."""
    num_codebooks: int
    codebook_size: int
    codebook_dim: int
    kernel_size: int
    channel_ratios: tuple[int | float, ...]
    strides: tuple[int, ...]
    block_dilations: tuple[int, ...]
    unit_kernel_size: int
    """Of the convolutions over the semantic model's frames, as transformers names them."""

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> XCodecArchitecture:
        """Read transformers' ``config.json``, which may leave out what is usual.

        Raises:
            CheckpointError: Its semantic model is of a type that is not known.
            ConfigError: A value does not fit; ``where`` says where it stands.
        """
        given = config.get("semantic_model_config") or {}
        kind = given.get("model_type", "hubert")
        if kind not in SEMANTIC_FIELDS:
            raise CheckpointError(
                f"{where} has a semantic model of type {kind!r}, expected "
                f"{' or '.join(SEMANTIC_FIELDS)}"
            )
        semantic = _semantic(kind, given)
        acoustic = DacArchitecture.of(
            {
                **USUAL_ACOUSTIC,
                **(config.get("acoustic_model_config") or {}),
                "sampling_rate": config.get("sample_rate", 16_000),
            },
            f"{where}.acoustic_model_config",
        )
        size = config.get("codebook_size", 1024)
        width = acoustic.hidden_size + semantic["hidden_size"]
        # Newer releases take whole numbers only.
        ratios = [int(r) if r == int(r) else r for r in config.get("channel_ratios", (1, 1))]
        values = {
            "acoustic": asdict(acoustic),
            "semantic_type": kind,
            "semantic": semantic,
            "num_codebooks": 1,
            "codebook_size": size,
            "codebook_dim": config.get("codebook_dim") or width,
            "kernel_size": config.get("kernel_size", 3),
            "channel_ratios": ratios,
            "strides": config.get("strides", (1, 1)),
            "block_dilations": config.get("block_dilations", (1, 1)),
            "unit_kernel_size": config.get("unit_kernel_size", 3),
        }
        shape = build(cls, values, where)
        highest_kbps = (config.get("target_bandwidths") or [4])[-1]
        return replace(shape, num_codebooks=int(highest_kbps / shape.codebook_kbps + 1e-9))

    @property
    def codebook_kbps(self) -> float:
        """What a codebook takes."""
        frames = math.ceil(self.acoustic.sample_rate / self.acoustic.hop_length)
        return math.ceil(math.log2(self.codebook_size)) * frames / 1000


def _semantic(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a semantic model's configuration, as plain values."""
    from transformers import AutoConfig

    names = SEMANTIC_FIELDS[kind]
    full = AutoConfig.for_model(kind, **{name: given[name] for name in names if name in given})
    values = {name: getattr(full, name) for name in names}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}


def build_xcodec(
    shape: XCodecArchitecture,
    tensors: Mapping[str, Tensor],
    source: object,
    leave_out: Collection[str] = (),
) -> Any:
    """Make transformers' model and fill it.

    Args:
        shape: Its sizes; the model has ``num_codebooks`` codebooks and encodes by all of them.
        tensors: By transformers' names, weight norm folded.
        source: What to call the checkpoint in an error.
        leave_out: Beginnings of names, of layers that are not needed.
    """
    import transformers

    library: Any = transformers
    config = library.XcodecConfig(
        sample_rate=shape.acoustic.sample_rate,
        # Half a codebook more, so that rounding down gives the number itself.
        target_bandwidths=[(shape.num_codebooks + 0.5) * shape.codebook_kbps],
        kernel_size=shape.kernel_size,
        channel_ratios=list(shape.channel_ratios),
        strides=list(shape.strides),
        block_dilations=list(shape.block_dilations),
        unit_kernel_size=shape.unit_kernel_size,
        codebook_size=shape.codebook_size,
        codebook_dim=shape.codebook_dim,
        acoustic_model_config=library.DacConfig(**shape.acoustic.settings()),
        # Masks are of training only; without them there is no tensor to mask with.
        semantic_model_config=library.AutoConfig.for_model(
            shape.semantic_type, **shape.semantic, mask_time_prob=0.0, mask_feature_prob=0.0
        ),
    )
    model: Any = empty(lambda: library.XcodecModel(config))
    for name in (*leave_out, "decoder_semantic.", "fc1."):
        setattr(model, name.removesuffix("."), nn.Identity())
    for quantizer in model.quantizer.quantizers:
        for name in _CODEBOOK_TRAINING:
            delattr(quantizer.codebook, name)
    return fill(model, tensors, source)


def for_inference(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the tensors that only training needs."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(TRAINING_ONLY)
        and not name.endswith(tuple(f".codebook.{buffer}" for buffer in _CODEBOOK_TRAINING))
    }
