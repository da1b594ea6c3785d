"""Units of a layer of HuBERT and k-means, on a CPU: ours, and the usual loop over transformers.

A HuBERT of the base size with random weights, layer 6 of 12, 500 centroids, 200 recordings of 1
to 15 s, spread evenly on a logarithmic scale and cut from the package's own. The loop takes
batches of 8 in the order given, padded with zeros, without a mask, as the model wants it; it asks
for all hidden states and hands one to scikit-learn's ``predict``. The recordings go in portions:
each is a round, so that none is computed more often than is needed.

Beside the times: how many units are the same as when a recording is computed alone, in ours and
in the loop; and the assignment by itself, on frames of the encoder and on noise.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from bench import Benchmark, Row, cannot_run, in_turns, start
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechlm.audio import load_audio
from speechlm.data.human import human_clips
from speechlm_tokenizers.nearest import NearestCentroid
from speechlm_tokenizers.ssl_kmeans import SSLKMeans

SAMPLE_RATE = 16_000
NUM_RECORDINGS, BATCH, PORTIONS = 200, 8, 5
SHORTEST_S, LONGEST_S = 1.0, 15.0
LAYER, NUM_UNITS = 6, 500
FIT_RECORDINGS = 60
NUM_FRAMES = 5000
TARGET, NEAREST_TARGET = 2.0, 1.5
QUICK = dict(
    hidden_size=32, num_hidden_layers=7, num_attention_heads=2, intermediate_size=64,
    conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
)  # fmt: skip


def main(words: list[str] | None = None) -> None:
    bench = start("ssl_units", "units of HuBERT and k-means, against padding", words, __doc__)
    try:
        import sklearn.cluster  # noqa: F401
        import transformers  # noqa: F401
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        cannot_run(f"the peer is not here ({error}): pip install 'speechlm[sklearn]' transformers")
    quick = bench.args.quick
    waves = make_recordings(40 if quick else NUM_RECORDINGS, shrink=5 if quick else 1)
    model, tokenizer = make_pair(waves[: 10 if quick else FIT_RECORDINGS], quick)
    kmeans = as_sklearn(tokenizer.unit_features)
    portions = [waves[first::PORTIONS] for first in range(PORTIONS)]
    with threadpool_limits(bench.args.threads), torch.inference_mode():
        found: dict[str, list[list[Tensor]]] = {"ours": [], "loop": []}
        contenders = {
            "ours": in_portions(partial(ours, tokenizer), portions, found["ours"]),
            "loop": in_portions(partial(padded_loop, model, kmeans), portions, found["loop"]),
        }
        ours(tokenizer, waves[:2])
        padded_loop(model, kmeans, waves[:2])
        times = in_turns(contenders, PORTIONS, warm=True)
        bench.compare(
            f"{len(waves)} recordings, against batches of {BATCH}",
            times,
            "ours",
            "loop",
            amount=len(waves) / PORTIONS,
            unit="ms/recording",
            target=TARGET,
        )
        flat = [units for portion in found["ours"] for units in portion]
        order = [wave for portion in portions for wave in portion]
        alone = [tokenizer.encode(wave[None])[0].codes[0] for wave in order]
        mine = share_equal(flat, alone)
        bench.add(Row(what="ours: units as of the same alone", value=mine, unit="%", target=100))
        alone = [padded_loop(model, kmeans, [wave])[0] for wave in portions[0]]
        theirs = share_equal(found["loop"][0], alone)
        bench.add(Row(what="the loop: units as of the same alone", value=theirs, unit="%"))
        assert len(torch.cat(flat).unique()) > 50 or quick, "too few units to tell anything"
        check_parity(model, tokenizer, portions[0][:8])

        frames = torch.cat([tokenizer.features(wave) for wave in order[: FIT_RECORDINGS // 2]])
        frames = frames[: 100 if quick else NUM_FRAMES].contiguous()
        compare_nearest(bench, "frames of the encoder", frames, tokenizer.unit_features, True)
        generator = torch.Generator().manual_seed(2)
        noise = torch.randn(frames.shape, generator=generator)
        centroids = torch.randn(tokenizer.unit_features.shape, generator=generator)
        compare_nearest(bench, "noise", noise, centroids, False)
    seconds = [len(wave) / SAMPLE_RATE for wave in waves]
    padded = sum(
        BATCH * max(len(wave) for wave in portion[first : first + BATCH]) / SAMPLE_RATE
        for portion in portions
        for first in range(0, len(portion), BATCH)
    )
    bench.notes.append(
        f"recordings of {min(seconds):.1f} to {max(seconds):.1f} s, {sum(seconds):.0f} s in all, "
        f"{padded:.0f} s with padding; the loop's share is of the first {len(portions[0])}"
    )
    bench.finish()


def make_recordings(number: int, shrink: float) -> list[Tensor]:
    """Pieces of the package's recordings, float32 [T], in an order that mixes lengths."""
    speech = torch.cat([load_audio(clip.path, SAMPLE_RATE) for clip in human_clips().values()])
    generator = torch.Generator().manual_seed(1)
    least, most = math.log(SHORTEST_S / shrink), math.log(LONGEST_S / shrink)
    lengths = (least + (most - least) * torch.rand(number, generator=generator)).exp()
    starts = torch.rand(number, generator=generator)
    waves = []
    for length_s, place in zip(lengths.tolist(), starts.tolist(), strict=True):
        length = round(length_s * SAMPLE_RATE)
        first = int(place * (len(speech) - length))
        waves.append(speech[first : first + length].clone())
    return waves


def make_pair(waves: Sequence[Tensor], quick: bool) -> tuple[torch.nn.Module, SSLKMeans]:
    """An encoder of transformers, and our tokenizer with the same weights."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    model = HubertModel(HubertConfig(**(QUICK if quick else {}))).eval()
    options = {"layer": LAYER, "num_units": 40 if quick else NUM_UNITS, "iterations": 10}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer = SSLKMeans.fit(waves, {**options, "model": folder, "device": "cpu"}, seed=1)
    return model, tokenizer


def as_sklearn(centroids: Tensor) -> Any:
    """A KMeans of scikit-learn that has these centroids."""
    from sklearn.cluster import KMeans

    array = centroids.numpy().copy()
    kmeans = KMeans(len(array), init=array, n_init=1, max_iter=1).fit(array)
    kmeans.cluster_centers_ = array
    return kmeans


def in_portions(
    run: Callable[[Sequence[Tensor]], list[Tensor]],
    portions: Sequence[Sequence[Tensor]],
    found: list[list[Tensor]],
) -> Callable[[], None]:
    """What computes the next portion every time it is called, and keeps the result."""
    return lambda: found.append(run(portions[len(found)]))


def ours(tokenizer: SSLKMeans, waves: Sequence[Tensor]) -> list[Tensor]:
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = pad_sequence(list(waves), batch_first=True)
    return [units.codes[0] for units in tokenizer.encode(batch, lengths)]


def padded_loop(model: torch.nn.Module, kmeans: Any, waves: Sequence[Tensor]) -> list[Tensor]:
    """Units by transformers and scikit-learn; of each recording those that it would have alone."""
    found: list[Tensor] = []
    for first in range(0, len(waves), BATCH):
        some = waves[first : first + BATCH]
        hidden = model(pad_sequence(list(some), batch_first=True), output_hidden_states=True)
        features = hidden.hidden_states[LAYER]
        codes = kmeans.predict(features.flatten(0, 1).numpy())
        rows = torch.from_numpy(codes).long().view(features.shape[:2])
        found += [row[: (len(wave) - 400) // 320 + 1] for row, wave in zip(rows, some, strict=True)]
    return found


def share_equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Percent of units that are equal."""
    pairs = [a == b for a, b in zip(some, others, strict=True)]
    return 100 * float(torch.cat(pairs).double().mean())


def check_parity(model: torch.nn.Module, tokenizer: SSLKMeans, waves: Sequence[Tensor]) -> None:
    """The features are transformers', of the same samples."""
    for wave in waves:
        inputs = tokenizer._encoder.inputs(wave)[None]
        expected = model(inputs, output_hidden_states=True).hidden_states[LAYER][0]
        torch.testing.assert_close(tokenizer.features(wave), expected, atol=1e-4, rtol=0)


def compare_nearest(
    bench: Benchmark, what: str, frames: Tensor, centroids: Tensor, promised: bool
) -> None:
    kmeans = as_sklearn(centroids)
    nearest = NearestCentroid(centroids)
    array = frames.numpy()
    same = torch.from_numpy(kmeans.predict(array)).long() == nearest(frames)
    contenders = {
        "ours": lambda: nearest(frames),
        "scikit-learn": lambda: kmeans.predict(array),
    }
    times = in_turns(contenders, 1 if bench.args.quick else 21)
    bench.compare(
        f"nearest of {len(centroids)} centroids, {len(frames)} {what}",
        times,
        "ours",
        "scikit-learn",
        target=NEAREST_TARGET if promised else None,
        note=f"{100 * float(same.double().mean()):.2f} % of ids equal",
    )


if __name__ == "__main__":
    main()
