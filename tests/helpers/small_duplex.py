"""The small bundle with an untrained duplex LM, and what drives a session without a server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from small_bundle import small_bundle

from speechlm import SpeechLM
from speechlm.dialogue.duplex import DuplexSession
from speechlm.dialogue.messages import Event, Hear, Sound
from speechlm.dialogue.settings import SessionSettings
from speechlm.generation.engine import Engine
from speechlm.layouts.registry import build_layout
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Decoder
from speechlm.model.unit_lm import UnitLM


def small_duplex(seed: int = 1, **shape: Any) -> SpeechLM:
    """It makes noises all the time, which depend on what it hears; ``shape`` is the decoder's."""
    whole = small_bundle(seed)
    layout = build_layout("duplex", {}, 1)
    vocabulary = Vocabulary(
        tokenizer_fingerprint=whole.tokenizer.fingerprint,
        stream_sizes=layout.stream_sizes((whole.tokenizer.vocab_size,)),
    )
    torch.manual_seed(seed)
    decoder = Decoder(
        DecoderConfig(
            **{
                "vocab_size": vocabulary.size,
                "num_layers": 1,
                "model_dim": 32,
                "num_heads": 2,
                "num_kv_heads": 2,
                "ffn_dim": 64,
                "max_positions": 64,
                "tie_embeddings": False,
                **shape,
            }
        )
    )
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12)
    return SpeechLM(whole.tokenizer, UnitLM(decoder, vocabulary, layout), whole.vocoder)


def noise(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray[Any, Any]:
    """A user who hisses, louder and softer."""
    draw = np.random.default_rng(seed)
    count = round(seconds * rate)
    level = 0.1 * (1.3 + np.sin(np.arange(count) / rate * 7))
    return (level * draw.standard_normal(count)).clip(-1, 1).astype(np.float32)


def run_engine(engine: Engine, sessions: Iterable[DuplexSession]) -> None:
    """Until there is nothing left to do."""
    by_ticket = {session.tickets[0]: session for session in sessions}
    while engine.busy:
        for drawn in engine.step():
            by_ticket[drawn.ticket].drawn(drawn)
        for session in by_ticket.values():
            session.tick()


def converse(
    bundle: SpeechLM,
    wave: np.ndarray[Any, Any],
    cuts: Sequence[int],
    settings: SessionSettings,
) -> list[Event]:
    """Everything that one session alone says to a wave that comes in pieces of ``cuts``."""
    events: list[Event] = []
    engine = Engine(bundle.lm, num_positions=256)
    session = DuplexSession(bundle, engine, settings, events.append)
    for piece in np.split(wave, np.cumsum(cuts)):
        session.handle(Hear(samples=piece))
        run_engine(engine, [session])
    session.close()
    return events


def heard(events: Iterable[Event]) -> np.ndarray[Any, Any]:
    """All sound of some events."""
    return np.concatenate(
        [np.zeros(0, np.float32), *(one.samples for one in events if isinstance(one, Sound))]
    )
