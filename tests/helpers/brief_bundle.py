"""The small bundle with room for few units, so that its answers are a second or two long."""

from __future__ import annotations

from dataclasses import replace

from small_bundle import small_bundle

from speechlm import SpeechLM
from speechlm.model.decoder import Decoder
from speechlm.model.unit_lm import UnitLM


def brief_bundle(max_positions: int = 112) -> SpeechLM:
    """It answers questions of up to two seconds."""
    whole = small_bundle()
    decoder = Decoder(replace(whole.lm.decoder.config, max_positions=max_positions))
    decoder.load_state_dict(whole.lm.decoder.state_dict())
    return SpeechLM(
        whole.tokenizer, UnitLM(decoder, whole.lm.vocabulary, whole.lm.layout), whole.vocoder
    )
