"""A whole SpeechLM that is made in a second: a fitted tokenizer, an untrained LM, a vocoder."""

from __future__ import annotations

from pathlib import Path

import torch

from speechlm import SpeechLM, load_vocoder
from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.layouts.registry import build_layout
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Decoder
from speechlm.model.unit_lm import UnitLM
from speechlm.plugins import TOKENIZERS, plugin


def small_bundle(seed: int = 1) -> SpeechLM:
    """Fit on a few of the package's recordings; it answers with noises, but it answers."""
    kind = plugin(TOKENIZERS, "logmel-kmeans")
    clips = list(human_clips("answers").values())[:6]
    waves = [load_audio(clip.path, kind.sample_rate) for clip in clips]
    tokenizer = kind.fit(waves, {"num_units": 32, "iterations": 3}, seed)
    vocabulary = Vocabulary(
        tokenizer_fingerprint=tokenizer.fingerprint, stream_sizes=(tokenizer.vocab_size,)
    )
    torch.manual_seed(seed)
    decoder = Decoder(
        DecoderConfig(
            vocab_size=vocabulary.size,
            num_layers=1,
            model_dim=32,
            num_heads=2,
            num_kv_heads=2,
            ffn_dim=64,
            max_positions=1024,
            tie_embeddings=False,
        )
    )
    with torch.no_grad():  # an untrained LM may end at once; this one never does
        decoder.lm_head.weight[vocabulary.end] = 0.0
        decoder.lm_head.weight[vocabulary.size - 1] += 1.0
    return SpeechLM(
        tokenizer,
        UnitLM(decoder, vocabulary, build_layout("flat", {}, 1)),
        load_vocoder("centroid-mel", tokenizer),
    )


def question() -> Path:
    """A recording of a human voice to ask with."""
    return next(iter(human_clips("answers").values())).path
