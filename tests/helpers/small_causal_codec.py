"""A ``causal-codec`` small enough for tests, with random weights that give many codes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.protocols import SegmentBatch
from speechlm_tokenizers.causal_codec import CausalCodec
from speechlm_tokenizers.causal_codec_training import CausalCodecTraining

SMALL: dict[str, Any] = {
    "dim": 32,
    "encoder_blocks": 2,
    "decoder_unit_blocks": 1,
    "decoder_blocks": 1,
    "code_dim": 8,
    "num_codebooks": 3,
    "vocab_size": 64,
    "codebook_warmup": 2,
    "loss_mels": 40,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "rvq": {},
    "fsq": {"quantizer": "fsq", "fsq_values": (4, 4, 4)},
    "other sizes": {
        "hop_length": 640,
        "spectral_hop": 128,
        "synthesis_window": 384,
        "analysis_window": 300,
        "kernel_size": 1,
        "block_frames": 1,
        "lookahead": 1,
        "sample_rate": 24_000,
    },
}


@cache
def human_waves(count: int) -> tuple[Tensor, ...]:
    """Some of the recordings that come with speechlm, float32 [T] at 16 kHz each."""
    return tuple(load_audio(clip.path, 16_000) for clip in list(human_clips().values())[:count])


def segments(number: int, rows: int = 6, samples: int = 6400) -> SegmentBatch:
    """A batch of human speech, float32 [rows, samples]; the same for the same number."""
    wave = torch.cat(human_waves(20))
    generator = torch.Generator().manual_seed(number)
    starts = torch.randint(len(wave) - samples, (rows,), generator=generator)
    waves = torch.stack([wave[start : start + samples] for start in starts.tolist()])
    return SegmentBatch(waves=waves, lengths=torch.full((rows,), samples), number=number)


def random_codec(seed: int = 0, **options: Any) -> CausalCodec:
    """One with first weights, whose codebooks have been started on speech where it has any."""
    training = CausalCodec.training({**SMALL, **options}, seed)
    assert isinstance(training, CausalCodecTraining)
    with torch.no_grad():
        # First weights hear little difference between sounds: bring out what there is.
        hidden = training.model.encoder(segments(0, rows=30).waves)
        for down in training.model.quantizers.down:
            scale, mean = torch.std_mean(down(hidden).flatten(0, 1), dim=0)
            down.weight.div_(scale[:, None])
            down.bias.sub_(mean).div_(scale)
        for number in range(4):
            training(segments(number))
    return training.part()
