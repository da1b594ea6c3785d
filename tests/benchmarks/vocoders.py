"""Units to sound on a CPU: `unit-vocos`, and the code HiFi-GAN of transformers' SeamlessM4T.

Both as they are by default, with fresh weights, on the same 250 units of 50 Hz. The peer predicts
how long each unit lasts; here it predicts one frame each, so that both render the same 5 seconds.
It cannot stream: its first sound comes with the last.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from bench import Benchmark, Row, in_turns, start
from torch import Tensor
from transformers import SeamlessM4TConfig
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TCodeHifiGan

from speechlm.units import Units
from speechlm_vocoders.unit_vocos import UnitVocos
from speechlm_vocoders.vocos_training import UnitVocosOptions, UnitVocosTraining

SAMPLE_RATE, HOP_LENGTH, NUM_UNITS = 16_000, 320, 1000
SECONDS = 5
TARGET, FIRST_PACKET_MS = 4.0, 60.0
QUICK: dict[str, Any] = dict(dim=32, num_unit_layers=1, num_layers=1)
QUICK_PEER: dict[str, Any] = dict(upsample_initial_channel=64, unit_embed_dim=64)


class FreshTokenizer:
    """Whose units they are: only what a vocoder asks."""

    sample_rate, hop_length = SAMPLE_RATE, HOP_LENGTH
    num_codebooks, vocab_size = 1, NUM_UNITS
    frame_rate = SAMPLE_RATE / HOP_LENGTH
    fingerprint = "benchmark"


def main(words: list[str] | None = None) -> None:
    bench = start("vocoders", "unit-vocos against SeamlessM4T's code HiFi-GAN", words, __doc__)
    quick = bench.args.quick
    ours, theirs = make_ours(QUICK if quick else {}), make_peer(QUICK_PEER if quick else {})
    frames = 25 if quick else SECONDS * SAMPLE_RATE // HOP_LENGTH
    codes = torch.randint(NUM_UNITS, (1, frames), generator=torch.Generator().manual_seed(1))
    units = Units(codes=codes, frame_rate=50.0, fingerprint=FreshTokenizer.fingerprint)
    assert len(ours.decode([units])[0]) == len(render(theirs, codes)) == frames * HOP_LENGTH
    times = in_turns(
        {
            "whole": lambda: ours.decode([units]),
            "streamed": lambda: stream(ours, codes),
            "peer": lambda: render(theirs, codes),
        },
        bench.args.pairs,
    )
    seconds = frames * HOP_LENGTH / SAMPLE_RATE
    for what in ("whole", "streamed"):
        bench.compare(
            f"{seconds:g} s {what}",
            times,
            what,
            "peer",
            amount=seconds,
            unit="ms/s",
            target=TARGET,
            note=f"{seconds / statistics.median(times[what]):.0f} times real time",
        )
    add_first_packet(bench, ours, codes)
    sizes = (sum(tensor.numel() for tensor in m.parameters()) for m in (ours.model, theirs))
    bench.notes.append("{:.1f} M and {:.1f} M weights".format(*(size / 1e6 for size in sizes)))
    bench.finish()


def make_ours(options: dict[str, Any]) -> UnitVocos:
    """A vocoder of fresh weights."""
    chosen = UnitVocosOptions(**options)
    tokenizer: Any = FreshTokenizer()
    torch.manual_seed(0)
    return UnitVocosTraining(chosen.config_for(tokenizer), chosen).part()


def make_peer(changes: dict[str, Any]) -> SeamlessM4TCodeHifiGan:
    """transformers' vocoder of fresh weights, by which each unit lasts a frame."""
    torch.manual_seed(0)
    peer = SeamlessM4TCodeHifiGan(SeamlessM4TConfig(**changes)).eval()
    with torch.no_grad():
        for parameter in peer.dur_predictor.proj.parameters():
            parameter.zero_()
    return peer


@torch.inference_mode()
def render(peer: SeamlessM4TCodeHifiGan, codes: Tensor) -> Tensor:
    """Units int64 [1, F] to float32 [F * HOP_LENGTH]; ids below 4 are not units to it."""
    first = torch.zeros(1, 1, dtype=torch.int64)
    waves, _ = peer(codes + 4, first, first)
    return waves[0]


def stream(vocoder: UnitVocos, codes: Tensor) -> Tensor:
    """The same units one by one, as a language model speaks them."""
    live = vocoder.stream()
    return torch.cat([*(live.push(code) for code in codes.split(1, dim=1)), live.finish()])


def add_first_packet(bench: Benchmark, vocoder: UnitVocos, codes: Tensor) -> None:
    """Time from the first units, of which there are just enough, to the first samples."""
    block = vocoder.config.block
    needed = block * (vocoder.config.model.lookahead // block + 1)
    waits = []
    for _ in range(4 * bench.args.pairs):
        begun = time.perf_counter()
        wave = vocoder.stream().push(codes[:, :needed])
        waits.append(1e3 * (time.perf_counter() - begun))
        assert len(wave)
    bench.add(
        Row(
            what=f"first packet, from {needed} units",
            value=statistics.median(waits),
            unit="ms",
            target=FIRST_PACKET_MS,
            at_most=True,
            spread=(min(waits), max(waits)),
            note=f"{1e3 * len(wave) / SAMPLE_RATE:.0f} ms of sound",
        )
    )


if __name__ == "__main__":
    main()
