"""Mimi a frame of 80 ms at a time: our tokenizer and vocoder, and moshi's own streaming.

The published shape with fresh weights, the same on both sides. Frames are timed once so many have
come before that attention sees its whole window. A whole recording is tokenized as a stream too;
what blocks of one frame and larger ones cost there is shown beside moshi without streaming, which
computes the recording in one piece.

moshi asks for other versions than ours, so it is installed beside, without what it depends on:

    .venv/bin/python -m pip install --no-deps --target runs/moshi moshi sentencepiece sphn
    PYTHONPATH=runs/moshi make bench ARGS=mimi
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# On a CPU one norm of another model would be compiled, which needs a C++ compiler.
os.environ.setdefault("NO_TORCH_COMPILE", "1")

import torch
from bench import Benchmark, cannot_run, in_turns, start
from torch import Tensor

from speechlm_tokenizers.mimi import Mimi, MimiConfig
from speechlm_tokenizers.mimi_checkpoint import read_moshi
from speechlm_vocoders.mimi import MimiDecoder

TARGET = 1.0
"""As fast as the peer."""
NUM_CODEBOOKS = 8
FRAMES = 25
"""Timed in a row: two seconds."""
WINDOW = 125
"""Frames that attention sees."""
SAME = 100
"""Frames whose codes are compared; when its ring is full, the peer forgets a position early."""
TOLERANCE = 1e-4
FEWEST = 20
"""Codes of the first codebook that must be in play for equality to mean something."""
BLOCKS = (1, 4, 25)
SECONDS = 10
"""Of the whole recording."""
QUICK = dict(
    seanet=dict(n_filters=4, dimension=32),
    quantizer=dict(dimension=16, bins=64, input_dimension=32, output_dimension=32),
    transformer=dict(
        d_model=32, num_layers=2, dim_feedforward=64, input_dimension=32, output_dimensions=[32]
    ),
)


def main(words: list[str] | None = None) -> None:
    bench = start("mimi", "Mimi a frame at a time, against moshi's own", words, __doc__)
    try:
        peer = make_peer(QUICK if bench.args.quick else {})
    except ImportError as error:
        cannot_run(f"mimi: {error}; 'mimi.py --help' says how to install the peer, in one line")
    weights = {name: tensor.clone() for name, tensor in peer.state_dict().items()}
    for threads in sorted({1, bench.args.threads}):
        torch.set_num_threads(threads)
        compare_frames(bench, threads, tokenizer_of(weights), peer)
    torch.set_num_threads(1)
    compare_whole(bench, weights, peer)
    total = sum(parameter.numel() for parameter in peer.parameters())
    bench.notes.append(
        f"{total / 1e6:.1f} M weights besides the codebooks, of which {NUM_CODEBOOKS} are used"
    )
    bench.finish()


def make_peer(changes: dict[str, dict[str, Any]]) -> Any:
    """moshi's Mimi with fresh weights and codebooks that tell sounds apart."""
    from moshi.models import loaders

    config = copy.deepcopy(loaders._mimi_config)
    for part, values in changes.items():
        config[part] |= values
    torch.manual_seed(0)
    peer = loaders.get_mimi(None, config, num_codebooks=NUM_CODEBOOKS)
    with torch.no_grad():
        heard = peer.encode_to_latent(noise(2 * WINDOW * peer.frame_size)[None], quantize=False)
        for quantizer in (peer.quantizer.rvq_first, peer.quantizer.rvq_rest):
            latents = quantizer.input_proj(heard)[0]
            middle, spread = latents.mean(dim=1), latents.std(dim=1)
            for level, layer in enumerate(quantizer.vq.layers):
                rows = layer._codebook.embedding_sum.normal_().mul_(spread / (1 + level))
                rows += middle if level == 0 else 0
    return peer


def noise(samples: int) -> Tensor:
    """Sound that becomes louder and softer, float32 [1, T]."""
    generator = torch.Generator().manual_seed(1)
    steps = -(-samples // 480)
    loudness = torch.rand(steps, generator=generator).repeat_interleave(480)[:samples]
    return (loudness * torch.randn(samples, generator=generator))[None]


def tokenizer_of(weights: dict[str, Tensor], block: int = 1) -> Mimi:
    """Ours, of the peer's weights."""
    architecture, tensors = read_moshi(weights, Path("moshi"))
    tensors["quantizer.codebooks"] = tensors["quantizer.codebooks"][:NUM_CODEBOOKS].clone()
    return Mimi(MimiConfig(architecture=architecture, block=block), tensors)


@torch.inference_mode()
def compare_frames(bench: Benchmark, threads: int, tokenizer: Mimi, peer: Any) -> None:
    """Check that both give the same, then time them."""
    count = 2 if bench.args.quick else FRAMES
    hop, vocoder = tokenizer.hop_length, MimiDecoder.for_tokenizer(tokenizer)
    ears, mouth = tokenizer.stream(), vocoder.stream()
    heard = noise(WINDOW * hop)[0]
    with peer.streaming(1):
        spoken, used = 0.0, set()
        for number, frame in enumerate(heard.split(hop)):
            codes, wave = ears.push(frame), mouth.push(units := peer.encode(frame[None, None])[0])
            expected = peer.decode(units[None])[0, 0]
            spoken = max(spoken, float(expected.abs().max()))
            used.update(units[0].tolist())
            if number < SAME:
                assert torch.equal(codes, units), f"codes of frame {number} differ"
                assert (wave - expected).abs().max() < TOLERANCE * spoken, "waves differ"
        assert len(used) > FEWEST, f"only {len(used)} codes of the first codebook are in play"
        frames = heard[: count * hop].split(hop)
        units = torch.randint(tokenizer.vocab_size, (NUM_CODEBOOKS, count))
        codes = units.split(1, dim=1)
        encoding = in_turns(
            {
                "ours": lambda: [ears.push(frame) for frame in frames],
                "moshi": lambda: [peer.encode(frame[None, None]) for frame in frames],
            },
            bench.args.pairs,
        )
        decoding = in_turns(
            {
                "ours": lambda: [mouth.push(code) for code in codes],
                "moshi": lambda: [peer.decode(code[None]) for code in codes],
            },
            bench.args.pairs,
        )
    said = f"codes of {SAME} frames equal"
    for what, times, note in (("encode", encoding, said), ("decode", decoding, "")):
        bench.compare(
            f"{what} a frame, {threads} threads",
            times,
            "ours",
            "moshi",
            amount=count,
            unit="ms/frame",
            target=TARGET,
            note=note,
        )


@torch.inference_mode()
def compare_whole(bench: Benchmark, weights: dict[str, Tensor], peer: Any) -> None:
    """Tokenize a recording in blocks of several sizes, and as the peer does, in one piece."""
    seconds = 1 if bench.args.quick else SECONDS
    ours = {block: tokenizer_of(weights, block) for block in BLOCKS}
    rate = ours[1].sample_rate
    wave = noise(seconds * rate)
    expected = peer.encode(wave[None])[0]
    contenders: dict[str, Callable[[], object]] = {"moshi": lambda: peer.encode(wave[None])}
    notes = {}
    for block, tokenizer in ours.items():
        same = (tokenizer.encode(wave)[0].codes == expected).double().mean()
        notes[block] = f"{same:.1%} of codes equal"
        contenders[str(block)] = partial(tokenizer.encode, wave)
    times = in_turns(contenders, bench.args.pairs)
    for block in BLOCKS:
        bench.compare(
            f"encode {seconds} s at once, blocks of {block}, {torch.get_num_threads()} threads",
            times,
            str(block),
            "moshi",
            amount=seconds,
            unit="ms/s",
            note=notes[block],
        )


if __name__ == "__main__":
    main()
