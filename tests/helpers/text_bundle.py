"""The small bundle with an LM that knows text too."""

from __future__ import annotations

import torch
from toy_text import text_tokenizer

from speechlm import SpeechLM
from speechlm.layouts.registry import build_layout
from speechlm.layouts.text import TextTokenizer
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Decoder
from speechlm.model.unit_lm import UnitLM


def with_text(model: SpeechLM, layout: str) -> SpeechLM:
    """The bundle's tokenizer and vocoder with an untrained LM of a layout that knows text."""
    text = TextTokenizer(text_tokenizer())
    vocabulary = Vocabulary(
        tokenizer_fingerprint=model.tokenizer.fingerprint,
        stream_sizes=(model.tokenizer.vocab_size,),
        text_size=text.size,
        text_fingerprint=text.fingerprint,
    )
    torch.manual_seed(0)
    decoder = Decoder(
        DecoderConfig(
            vocab_size=vocabulary.size,
            num_layers=1,
            model_dim=32,
            num_heads=2,
            num_kv_heads=2,
            ffn_dim=64,
            max_positions=256,
            tie_embeddings=False,
        )
    )
    lm = UnitLM(decoder, vocabulary, build_layout(layout, {}, 1), text)
    return SpeechLM(model.tokenizer, lm, model.vocoder)
