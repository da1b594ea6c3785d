"""Mimi's checkpoints, as transformers and as moshi save them, in the form that the model reads.

moshi's names are first turned into those of transformers. Then matrices are laid out as
:mod:`speechlm_tokenizers.mimi_model` multiplies with them, once and for all: a convolution's rows
read positions one after another, an upsampling's read a position and the one before it; queries
and keys have their rotary pairs side by side; layer scales are part of the matrices before them;
a codebook is the mean of what was assigned to it.

Source:
    Names: ``convert_mimi_checkpoint_to_pytorch.py`` of transformers and moshi's ``loaders.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from speechlm.errors import CheckpointError
from speechlm_tokenizers.codec_loading import (
    checkpoint_config,
    checkpoint_folder,
    read_weights,
    weights_file,
)
from speechlm_tokenizers.mimi_model import RESAMPLING, MimiArchitecture

MODEL_TYPE = "mimi"
PUBLISHED = "kyutai/mimi"
MIN_USAGE = 1e-5
"""What a codebook's row was assigned at least, so that a row never used divides by something."""
REQUIRED = {
    "audio_channels": 1,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "hidden_act": "gelu",
    "attention_bias": False,
}
"""Settings of transformers' configuration that the model here is made for, and its defaults."""
MOSHI_NAMES = (
    (r"(\.conv(tr)?)+\.", ".conv."),
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"^(encoder|decoder)_transformer\.transformer\.", r"\1_transformer."),
    (r"^quantizer\.rvq_first\.(vq\.)?", "quantizer.semantic_residual_vector_quantizer."),
    (r"^quantizer\.rvq_rest\.(vq\.)?", "quantizer.acoustic_residual_vector_quantizer."),
    (r"\._codebook\.(embedding_sum|embed_avg)$", ".codebook.embed_sum"),
    (r"\._codebook\.cluster_size$", ".codebook.cluster_usage"),
    (r"\._codebook\._?(inited|initialized)$", ".codebook.initialized"),
    (r"\._codebook\.", ".codebook."),
    (r"\.linear(\d)\.", r".mlp.fc\1."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"\.self_attn\.in_proj(_|s\.0\.|\.)weight$", ".self_attn.in_proj.weight"),
    (r"\.self_attn\.out_proj(s\.0)?\.", ".self_attn.o_proj."),
)
"""Patterns in moshi's names, of several years, and what transformers has instead."""


def read_checkpoint(
    model: str, sha256: str | None = None
) -> tuple[MimiArchitecture, dict[str, Tensor]]:
    """Read a checkpoint of either kind.

    Args:
        model: A folder that transformers saved or its hub id; or moshi's file, here or on the
            hub as ``owner/name/file.safetensors``.
        sha256: What the SHA-256 of the file of weights must begin with.

    Returns:
        The architecture, and the weights as :mod:`speechlm_tokenizers.mimi_model` reads them,
        float32, with all codebooks.

    Raises:
        CheckpointError: It is missing, partial, another file, or of another architecture.
    """
    if model.endswith(".safetensors"):
        path = _moshi_file(model)
        return read_moshi(read_weights(path, sha256), path)
    folder = checkpoint_folder(model, PUBLISHED)
    config = checkpoint_config(folder, MODEL_TYPE)
    path = weights_file(folder)
    architecture = _architecture(config, path)
    return architecture, _lay_out(
        read_weights(path, sha256),
        path,
        architecture,
        num_layers=config.get("num_hidden_layers", 8),
        num_acoustic=config.get("num_quantizers", 32) - architecture.num_semantic,
    )


def read_moshi(
    tensors: Mapping[str, Tensor], source: Path
) -> tuple[MimiArchitecture, dict[str, Tensor]]:
    """The same for weights by moshi's names, which ``source`` says where they are from."""
    tensors = _moshi_to_transformers(tensors, source)
    architecture = _moshi_architecture(tensors, source)
    return architecture, _lay_out(
        tensors,
        source,
        architecture,
        num_layers=_count(tensors, r"encoder_transformer\.layers\.(\d+)\."),
        num_acoustic=_count(tensors, r"quantizer\.acoustic\w+\.layers\.(\d+)\."),
    )


def _lay_out(
    tensors: Mapping[str, Tensor],
    source: Path,
    architecture: MimiArchitecture,
    *,
    num_layers: int,
    num_acoustic: int,
) -> dict[str, Tensor]:
    """Lay weights out as the model multiplies with them.

    Args:
        tensors: float32, by transformers' names; all of them are needed.
        source: What to call them in an error.
        architecture: Theirs.
        num_layers: Of each transformer.
        num_acoustic: Codebooks behind the semantic ones.

    Raises:
        CheckpointError: A tensor is missing, of another shape, or of no use.
    """
    reader = _Reader(tensors, source)
    encoder, decoder = "encoder.layers.{}", "decoder.layers.{}"
    channels = reader.convolution(encoder.format(0), "encoder.first", 1)
    place = 1
    for stage, ratio in enumerate(reversed(architecture.ratios)):
        target = f"encoder.stages.{stage}"
        for number in range(architecture.residual_layers):
            reader.residual(encoder.format(place), f"{target}.residuals.{number}", channels)
            place += 1
        place += 1  # an activation
        channels = reader.convolution(
            encoder.format(place), f"{target}.down", channels, kernel=2 * ratio
        )
        place += 1
    dim = reader.convolution(encoder.format(place + 1), "encoder.last", channels)
    channels = reader.convolution(decoder.format(0), "decoder.first", dim)
    place = 1
    for stage, ratio in enumerate(architecture.ratios):
        target = f"decoder.stages.{stage}"
        channels = reader.upsampling(decoder.format(place + 1), f"{target}.up", channels, ratio)
        place += 2
        for number in range(architecture.residual_layers):
            reader.residual(decoder.format(place), f"{target}.residuals.{number}", channels)
            place += 1
    reader.convolution(decoder.format(place + 1), "decoder.last", channels, out=1)
    if dim % (2 * architecture.num_heads):
        raise CheckpointError(
            f"{source} has {dim} features, expected a multiple of twice its "
            f"{architecture.num_heads} heads"
        )
    for half in ("encoder", "decoder"):
        for number in range(max(1, num_layers)):
            reader.layer(
                f"{half}_transformer.layers.{number}",
                f"{half}.transformer.{number}",
                dim,
                architecture.num_heads,
            )
    reader.resampling(dim)
    reader.quantizer(dim, architecture.num_semantic, num_acoustic)
    return reader.finish()


class _Reader:
    """Takes each tensor of a checkpoint once, checks its shape and lays it out."""

    def __init__(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        self.left, self.source = dict(tensors), source
        self.result: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int | None) -> Tensor:
        """Give a tensor whose shape must be this; None stands for any size."""
        tensor = self.left.pop(name, None)
        if tensor is None:
            raise CheckpointError(
                f"{self.source} lacks the tensor {name}: it is partial, or of another architecture"
            )
        fits = tensor.ndim == len(shape) and all(
            expected in (None, found) for expected, found in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(
                f"{self.source}: {name} is {list(tensor.shape)}, expected [{expected}]: it is of "
                "another architecture"
            )
        return tensor.float()

    def convolution(
        self,
        source: str,
        target: str,
        channels: int,
        kernel: int | None = None,
        out: int | None = None,
    ) -> int:
        """Rows of a product are ``kernel`` positions, the oldest first; give its features."""
        weight = self.take(f"{source}.conv.weight", out, channels, kernel)
        self.result[f"{target}.weight"] = rearrange(weight, "o c k -> o (k c)")
        self.result[f"{target}.bias"] = self.take(f"{source}.conv.bias", len(weight))
        return len(weight)

    def residual(self, source: str, target: str, channels: int) -> None:
        hidden = self.convolution(f"{source}.block.1", f"{target}.wide", channels)
        self.convolution(f"{source}.block.3", f"{target}.narrow", hidden, kernel=1, out=channels)

    def upsampling(self, source: str, target: str, channels: int, ratio: int) -> int:
        """``ratio`` positions at once, of the position before and the present one."""
        weight = self.take(f"{source}.conv.weight", channels, None, 2 * ratio)
        present_and_past = rearrange(weight, "c o (a r) -> a r o c", r=ratio)
        self.result[f"{target}.weight"] = rearrange(
            present_and_past.flip(0), "a r o c -> (r o) (a c)"
        )
        bias = self.take(f"{source}.conv.bias", weight.shape[1])
        self.result[f"{target}.bias"] = bias.repeat(ratio)
        return int(weight.shape[1])

    def layer(self, source: str, target: str, dim: int, num_heads: int) -> None:
        q, k, v, out = (
            self.take(f"{source}.self_attn.{name}_proj.weight", dim, dim) for name in "qkvo"
        )
        halves = "(h a d) c -> (h d a) c"
        q, k = (rearrange(weight, halves, h=num_heads, a=2) for weight in (q, k))
        up = self.take(f"{source}.mlp.fc1.weight", None, dim)
        down = self.take(f"{source}.mlp.fc2.weight", dim, len(up))
        of_attention, of_mlp = (
            self.take(f"{source}.{name}_layer_scale.scale", dim) for name in ("self_attn", "mlp")
        )
        self.result |= {
            f"{target}.qkv.weight": torch.cat([q, k, v]),
            f"{target}.out.weight": of_attention[:, None] * out,
            f"{target}.up.weight": up,
            f"{target}.down.weight": of_mlp[:, None] * down,
        }
        for norm, name in (("norm1", "input_layernorm"), ("norm2", "post_attention_layernorm")):
            for kind in ("weight", "bias"):
                self.result[f"{target}.{norm}.{kind}"] = self.take(f"{source}.{name}.{kind}", dim)

    def resampling(self, dim: int) -> None:
        kernel = 2 * RESAMPLING
        down = self.take("downsample.conv.weight", dim, dim, kernel)
        self.result["encoder.resample.weight"] = rearrange(down, "o c k -> o (k c)")
        up = self.take("upsample.conv.weight", dim, 1, kernel)
        present_and_past = rearrange(up, "c 1 (a r) -> a r c", r=RESAMPLING)
        self.result["decoder.resample.weight"] = present_and_past.flip(0)

    def quantizer(self, dim: int, num_semantic: int, num_acoustic: int) -> None:
        inputs, outputs, codebooks = [], [], []
        size: tuple[int | None, int | None] = (None, None)
        for kind, count in (("semantic", num_semantic), ("acoustic", num_acoustic)):
            source = f"quantizer.{kind}_residual_vector_quantizer"
            inputs.append(self.take(f"{source}.input_proj.weight", size[1], dim, 1)[:, :, 0])
            size = (size[0], len(inputs[-1]))
            outputs.append(self.take(f"{source}.output_proj.weight", dim, size[1], 1)[:, :, 0])
            for number in range(count):
                name = f"{source}.layers.{number}.codebook"
                self.left.pop(f"{name}.initialized", None)
                sums = self.take(f"{name}.embed_sum", *size)
                size = (len(sums), size[1])
                usage = self.take(f"{name}.cluster_usage", len(sums))
                codebooks.append(sums / usage.clamp(min=MIN_USAGE)[:, None])
        self.result["quantizer.project.weight"] = torch.cat(inputs)
        self.result["decoder.project.weight"] = torch.cat(outputs, dim=1)
        self.result["quantizer.codebooks"] = torch.stack(codebooks)

    def finish(self) -> dict[str, Tensor]:
        """Give all that was laid out, once nothing of the checkpoint is left."""
        if self.left:
            more = f" and {len(self.left) - 1} more" if len(self.left) > 1 else ""
            raise CheckpointError(
                f"{self.source} holds the tensor {next(iter(self.left))}{more}, which the "
                "architecture has no place for"
            )
        return {name: tensor.contiguous() for name, tensor in self.result.items()}


def _moshi_to_transformers(tensors: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Give moshi's weights transformers' names, and their queries and keys its order."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in MOSHI_NAMES:
            name = re.sub(pattern, replacement, name)
        if not name.endswith(".in_proj.weight"):
            renamed[name] = tensor
            continue
        if tensor.ndim != 2 or len(tensor) % (6 * MimiArchitecture().num_heads):
            raise CheckpointError(
                f"{source}: {name} is {list(tensor.shape)}, expected queries, keys and values of "
                f"{MimiArchitecture().num_heads} heads: it is of another architecture"
            )
        q, k, v = tensor.chunk(3)
        pairs = "(h d a) c -> (h a d) c"
        q, k = (rearrange(part, pairs, h=MimiArchitecture().num_heads, a=2) for part in (q, k))
        for part, letter in ((q, "q"), (k, "k"), (v, "v")):
            renamed[name.replace(".in_proj.", f".{letter}_proj.")] = part
    return renamed


def _moshi_file(model: str) -> Path:
    path = Path(model)
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)/([\w.-]+)", model)
    if path.exists() or found is None:
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(found[1], found[2]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model} is neither a file here nor one that the hub gives: {reason}"
        ) from error


def _moshi_architecture(tensors: Mapping[str, Tensor], source: Path) -> MimiArchitecture:
    """As published but for the ratios, which kernels of twice their width tell."""
    pattern = re.compile(r"decoder\.layers\.(\d+)\.conv\.weight")
    convs = sorted((int(found[1]), name) for name in tensors if (found := pattern.fullmatch(name)))
    if len(convs) < 3:
        raise CheckpointError(
            f"{source} holds no decoder of Mimi: expected moshi's file, such as "
            "tokenizer-e351c8d8-checkpoint125.safetensors"
        )
    return MimiArchitecture(ratios=tuple(tensors[name].shape[-1] // 2 for _, name in convs[1:-1]))


def _architecture(config: Mapping[str, Any], source: Path) -> MimiArchitecture:
    """Of transformers' ``config.json``; what that leaves out is as published."""
    required = {
        **REQUIRED,
        "num_key_value_heads": config.get("num_attention_heads", 8),
        "upsample_groups": config.get("hidden_size", 512),
    }
    published = {**REQUIRED, "num_key_value_heads": 8, "upsample_groups": 512}
    for name, expected in required.items():
        if (found := config.get(name, published[name])) != expected:
            raise CheckpointError(
                f"{source} has {name} {found!r}, expected {expected!r}: it is of another "
                f"architecture than {PUBLISHED}"
            )
    rope = config.get("rope_parameters") or config
    architecture = MimiArchitecture(
        sample_rate=config.get("sampling_rate", 24_000),
        ratios=tuple(config.get("upsampling_ratios") or (8, 6, 5, 4)),
        residual_layers=config.get("num_residual_layers", 1),
        dilation_base=config.get("dilation_growth_rate", 2),
        num_heads=config.get("num_attention_heads", 8),
        window=config.get("sliding_window", 250),
        rope_theta=rope.get("rope_theta", 10_000.0),
        norm_eps=config.get("norm_eps", 1e-5),
        num_semantic=config.get("num_semantic_quantizers", 1),
    )
    rate = architecture.sample_rate / architecture.hop_length
    if (found := config.get("frame_rate") or rate) != rate:
        raise CheckpointError(
            f"{source} has frame_rate {found}, expected {rate:g}: its sampling_rate divided by "
            "twice its upsampling_ratios"
        )
    return architecture


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many things of a number in their tensors' names there are."""
    return max((int(found[1]) + 1 for n in tensors if (found := re.match(pattern, n))), default=0)
