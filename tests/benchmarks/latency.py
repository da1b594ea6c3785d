"""From the end of a spoken question to the first sound of the answer, on a CPU.

A bundle as the demo makes it, but with an LM of 10 million fresh weights: what it says is noise,
and takes as long as sense would. The question is a recording of 3 to 9 seconds and is handed over
whole at its end, so its tokenization is part of the time; so are the prompt, the first units and
the vocoder's first chunk.
"""

from __future__ import annotations

import statistics
import time

import torch
from bench import Row, start
from torch import Tensor

from speechlm import SpeechLM, load_vocoder
from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm.layouts.registry import build_layout
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model.architecture import DecoderConfig
from speechlm.model.decoder import Decoder
from speechlm.model.fast_linear import Weights
from speechlm.model.unit_lm import UnitLM
from speechlm.plugins import TOKENIZERS, plugin

SMALL = dict(num_layers=8, model_dim=320, num_heads=5, num_kv_heads=5, ffn_dim=832)
QUICK = dict(num_layers=2, model_dim=32, num_heads=2, num_kv_heads=2, ffn_dim=64)
NUM_QUESTIONS = 24
TARGET_MS = 200.0


def main(words: list[str] | None = None) -> None:
    bench = start("latency", "from a question's end to the first sound", words, __doc__)
    quick = bench.args.quick
    bundle = make_bundle(quick)
    clips = list(human_clips("prompts").values())
    waves = [load_audio(clip.path, bundle.tokenizer.sample_rate) for clip in clips]
    questions = [waves[index % len(waves)] for index in range(2 if quick else NUM_QUESTIONS)]
    kinds: tuple[tuple[Weights, float | None], ...] = (("float32", TARGET_MS), ("int8", None))
    for weights, target in kinds:
        bundle.weights = weights
        first_sound_ms(bundle, questions[0])  # not counted: the LM is made ready to decode once
        times = [first_sound_ms(bundle, question) for question in questions]
        bench.add(median_of(f"{weights}, median", times, target))
    encoding = [encode_ms(bundle, question) for question in questions]
    bench.add(median_of("of it: units of the question, median", encoding))
    num_weights = sum(parameter.numel() for parameter in bundle.lm.decoder.parameters())
    seconds = [len(question) / bundle.tokenizer.sample_rate for question in questions]
    bench.notes.append(
        f"{num_weights / 1e6:.1f} M weights; {len(questions)} times one of {len(waves)} questions, "
        f"{min(seconds):.1f} to {max(seconds):.1f} s long"
    )
    bench.finish()


def first_sound_ms(bundle: SpeechLM, question: Tensor) -> float:
    """Milliseconds from the question, float32 [T], to a chunk of the answer that holds sound."""
    begun = time.perf_counter()
    chunks = bundle.reply_stream(question, bundle.tokenizer.sample_rate)
    next(chunk for chunk in chunks if len(chunk))
    return 1e3 * (time.perf_counter() - begun)


def median_of(what: str, times: list[float], target: float | None = None) -> Row:
    return Row(
        what=what,
        value=statistics.median(times),
        unit="ms",
        target=target,
        at_most=True,
        spread=(min(times), max(times)),
    )


def encode_ms(bundle: SpeechLM, question: Tensor) -> float:
    begun = time.perf_counter()
    bundle.encode(question, bundle.tokenizer.sample_rate)
    return 1e3 * (time.perf_counter() - begun)


def make_bundle(quick: bool) -> SpeechLM:
    """Tokenizer and vocoder of the demo, fitted on the package's recordings, and a fresh LM."""
    kind = plugin(TOKENIZERS, "logmel-kmeans")
    clips = list(human_clips("prompts").values())[: 3 if quick else None]
    waves = [load_audio(clip.path, kind.sample_rate) for clip in clips]
    options = {"num_units": 32 if quick else 1000, "iterations": 3}
    tokenizer = kind.fit(waves, options, 1)
    vocabulary = Vocabulary(
        tokenizer_fingerprint=tokenizer.fingerprint, stream_sizes=(tokenizer.vocab_size,)
    )
    torch.manual_seed(0)
    shape = QUICK if quick else SMALL
    config = dict(max_positions=1024, tie_embeddings=False, dropout=0.0)
    decoder = Decoder(DecoderConfig(vocab_size=vocabulary.size, **config, **shape))
    with torch.no_grad():
        # It never ends at once: of all the others, some unit's logit is always positive.
        decoder.lm_head.weight[: vocabulary.first_unit] = 0
    return SpeechLM(
        tokenizer,
        UnitLM(decoder, vocabulary, build_layout("flat", {}, 1)),
        load_vocoder("centroid-mel", tokenizer),
    )


if __name__ == "__main__":
    main()
