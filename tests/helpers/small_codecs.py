"""Small EnCodec, DAC and X-Codec models with random weights, and checkpoints of them.

Random vectors would be chosen by few frames only. So each codebook is drawn from what is left to
quantize of some noise, and most of it comes up.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CODEBOOK_SIZE = 128


def speechlike(samples: int, seed: int = 0) -> Tensor:
    """Noise whose loudness rises and falls, float32 [samples]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, generator=generator)
    swell = torch.sin(torch.arange(samples) / 900 + seed).square()
    return 0.3 * noise * swell + 0.01 * noise.roll(1)


def unequal(*sizes: int) -> list[Tensor]:
    return [speechlike(size, seed) for seed, size in enumerate(sizes)]


def small_encodec(segments: bool = False, seed: int = 0, **sizes: Any) -> Any:
    """The ``encodec`` package's model in small: as its 24 kHz one, or its 48 kHz one."""
    from encodec import EncodecModel
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer

    torch.manual_seed(seed)
    shape: dict[str, Any] = {"dimension": 16, "n_filters": 4, "ratios": [5, 4, 4], **sizes}
    shape |= {"channels": 1 + segments, "causal": not segments}
    shape |= {"norm": "time_group_norm" if segments else "weight_norm"}
    with _old_weight_norm():
        encoder, decoder = SEANetEncoder(**shape), SEANetDecoder(**shape)
    model = EncodecModel(
        encoder,
        decoder,
        ResidualVectorQuantizer(dimension=16, n_q=4, bins=CODEBOOK_SIZE),
        target_bandwidths=[50.0],
        sample_rate=48_000 if segments else 24_000,
        channels=1 + segments,
        normalize=segments,
        segment=1.0 if segments else None,
        overlap=0.0,
    )
    model.eval()
    # Layers keep so little of their input that the deepest would only hear the biases.
    _amplify(model.encoder)
    wave = speechlike(40_000).expand(1, 1 + segments, -1)
    with torch.no_grad():
        features = model.encoder(wave / wave.square().mean().sqrt() if segments else wave)
    _draw_codebooks(features, [layer._codebook.embed for layer in model.quantizer.vq.layers])
    return model


def published_encodec(name: str) -> dict[str, Tensor]:
    """Names and sizes of a published model's weights, without any weights."""
    from encodec import EncodecModel

    with _old_weight_norm(), torch.device("meta"):
        model = getattr(EncodecModel, name)(pretrained=False)
    return dict(model.state_dict())


@contextmanager
def _old_weight_norm() -> Iterator[None]:
    """Let pass that the package uses a function that torch would rather see gone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm", FutureWarning)
        yield


def encodec_file(model: Any, path: Path) -> Path:
    """A checkpoint as the ``encodec`` package has them."""
    torch.save(model.state_dict(), path)
    return path


def encodec_folder(model: Any, folder: Path) -> Path:
    """The same weights as transformers saves them."""
    from transformers import EncodecConfig, EncodecModel

    segments = model.segment is not None
    encoder = model.encoder
    config = EncodecConfig(
        target_bandwidths=[model.quantizer.n_q * 7 * model.frame_rate / 1000],
        sampling_rate=model.sample_rate,
        audio_channels=model.channels,
        normalize=model.normalize,
        chunk_length_s=model.segment,
        overlap=0.01 if segments else None,
        hidden_size=encoder.dimension,
        num_filters=encoder.n_filters,
        upsampling_ratios=list(reversed(encoder.ratios)),
        norm_type="time_group_norm" if segments else "weight_norm",
        use_causal_conv=not segments,
        codebook_size=CODEBOOK_SIZE,
    )
    theirs = EncodecModel(config)
    named = {}
    for name, tensor in model.state_dict().items():
        name = name.replace(".model.", ".layers.").replace(".convtr.convtr.", ".conv.")
        name = name.replace(".conv.conv.", ".conv.").replace(".conv.norm.", ".norm.")
        name = name.replace(".convtr.norm.", ".norm.")
        name = name.replace("quantizer.vq.", "quantizer.").replace("._codebook.", ".codebook.")
        name = name.replace(".weight_g", ".parametrizations.weight.original0")
        named[name.replace(".weight_v", ".parametrizations.weight.original1")] = tensor
    theirs.load_state_dict(named)
    theirs.save_pretrained(folder)
    return folder


def small_dac(ratios: tuple[int, ...] = (2, 4, 5), seed: int = 0) -> Any:
    """Transformers' DAC in small; an odd ratio makes its decoder give too few samples."""
    from transformers import DacConfig, DacModel

    torch.manual_seed(seed)
    config = DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=32,
        downsampling_ratios=list(ratios),
        n_codebooks=4,
        codebook_size=CODEBOOK_SIZE,
        codebook_dim=4,
        sampling_rate=16_000,
    )
    model = DacModel(config).eval()
    _spread(model)
    with torch.no_grad():
        rest = model.encoder(speechlike(model.config.hop_length * 600)[None, None])
        for quantizer in model.quantizer.quantizers:
            rows = quantizer.in_proj(rest)[0].T
            quantizer.codebook.weight.copy_(rows[torch.randperm(600)[:CODEBOOK_SIZE]])
            rest = rest - quantizer(rest)[0]
    return model


def small_xcodec(semantic: str = "hubert", seed: int = 0) -> Any:
    """Transformers' X-Codec in small, beside a HuBERT or WavLM."""
    from transformers import AutoConfig, DacConfig, XcodecConfig, XcodecModel

    torch.manual_seed(seed)
    ratios = [8, 5, 4, 2]
    config = XcodecConfig(
        acoustic_model_config=DacConfig(
            encoder_hidden_size=4,
            decoder_hidden_size=32,
            downsampling_ratios=ratios,
            upsampling_ratios=ratios,
            hidden_size=16,
        ),
        semantic_model_config=AutoConfig.for_model(
            semantic,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=[8] * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        ),
        codebook_size=CODEBOOK_SIZE,
        target_bandwidths=[0.35, 0.7, 1.05, 1.4],
    )
    model = XcodecModel(config).eval()
    _spread(model)
    wave = speechlike(320 * 400)[None, None]
    with torch.no_grad():
        meaning = model.encoder_semantic(model._extract_semantic_features(wave).transpose(1, 2))
        both = torch.cat([model.acoustic_encoder(wave), meaning], dim=1)
        features = model.fc(both.transpose(1, 2)).transpose(1, 2)
    _draw_codebooks(
        features, [quantizer.codebook.embed for quantizer in model.quantizer.quantizers]
    )
    return model


def transformers_folder(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def _spread(model: nn.Module) -> None:
    """Let every layer hand on about as much as it gets."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            if "weight" in dict(layer.named_parameters(recurse=False)):
                size = (
                    layer.weight[0].numel()
                    if not isinstance(layer, nn.ConvTranspose1d)
                    else 2 * layer.in_channels
                )
                nn.init.normal_(layer.weight, std=0.6 * size**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _amplify(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
            with torch.no_grad():
                getattr(layer, "weight_g", layer.weight).mul_(1.7)


def _draw_codebooks(features: Tensor, codebooks: list[Tensor]) -> None:
    """Fill float32 [V, D] codebooks in place with frames of [1, D, F], each of what is left."""
    rest = features[0].T
    for codebook in codebooks:
        rows = torch.randperm(len(rest))[: len(codebook)]
        with torch.no_grad():
            codebook.copy_(rest[rows] * 1.01)
        rest = rest - codebook[torch.cdist(rest, codebook).argmin(dim=1)]
