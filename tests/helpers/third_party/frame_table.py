"""A tokenizer and a vocoder as another package would bring them, trained, small and whole.

Each unit is one frame of samples. The tokenizer learns the frames as k-means does, by gradient;
the vocoder learns what to play for each unit.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from speechlm.errors import FingerprintError, InputError
from speechlm.parts import fingerprint, load_part, save_part
from speechlm.protocols import AudioTokenizer, Need, SegmentBatch, Speaker
from speechlm.streaming import Blocks
from speechlm.units import Units

KIND = "frame-table"
HOP = 160


class FrameTable:
    """Frames of samples by the nearest row of a table."""

    sample_rate = 16_000
    hop_length = HOP
    frame_rate = sample_rate / hop_length
    num_codebooks = 1
    lookahead = 0
    streaming: Literal["exact"] = "exact"

    def __init__(self, table: Tensor) -> None:
        self.table = table.detach().cpu().double()
        self.vocab_size = len(table)
        self.fingerprint = fingerprint(KIND, {}, {"table": self.table})

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> list[Units]:
        sizes = [wave.shape[1]] * len(wave) if lengths is None else lengths.tolist()
        units = []
        for row, size in zip(wave, sizes, strict=True):
            stream = self.stream()
            codes = torch.cat([stream.push(row[:size]), stream.finish()], dim=1)
            units.append(
                Units(codes=codes, frame_rate=self.frame_rate, fingerprint=self.fingerprint)
            )
        return units

    def stream(self) -> "FrameTableStream":
        return FrameTableStream(self.table)

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, {}, {"table": self.table})

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(load_part(folder, KIND).tensors["table"])

    @classmethod
    def training(cls, options: Mapping[str, Any], seed: int) -> "TableTraining":
        return TableTraining(int(options.get("num_units", 16)), None)


class FrameTableStream:
    def __init__(self, table: Tensor) -> None:
        self._table = table
        self._blocks = Blocks(HOP)

    def push(self, samples: Tensor) -> Tensor:
        return self._codes(list(self._blocks.push(samples[None].double())))

    def finish(self) -> Tensor:
        last = self._blocks.finish()
        return self._codes([] if last is None else [last[0]])

    def _codes(self, frames: list[Tensor]) -> Tensor:
        nearest = [(self._table - frame).square().sum(dim=1).argmin() for frame in frames]
        return torch.stack(nearest)[None] if nearest else torch.zeros(1, 0, dtype=torch.int64)


class FrameTableVocoder:
    """Plays the row of a table for each unit."""

    sample_rate = 16_000
    hop_length = HOP
    lookahead = 0
    streaming: Literal["exact"] = "exact"

    def __init__(self, table: Tensor, tokenizer_fingerprint: str) -> None:
        self.table = table.detach().cpu().float()
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self._config = {"tokenizer_fingerprint": tokenizer_fingerprint}
        self.fingerprint = fingerprint(KIND, self._config, {"table": self.table})

    def decode(
        self, units: Sequence[Units], speaker: Speaker | None = None, style: str | None = None
    ) -> list[Tensor]:
        for item in units:
            if item.fingerprint != self.tokenizer_fingerprint:
                raise FingerprintError(
                    part="this vocoder",
                    expected=self.tokenizer_fingerprint,
                    got=item.fingerprint,
                    remedy="tokenize with its own tokenizer",
                )
        return [self.stream(speaker, style).push(item.expand().codes) for item in units]

    def stream(
        self, speaker: Speaker | None = None, style: str | None = None
    ) -> "FrameTableVocoderStream":
        if speaker is not None or style is not None:
            raise InputError("frame-table has one voice")
        return FrameTableVocoderStream(self.table)

    def save(self, folder: Path) -> None:
        save_part(folder, KIND, self._config, {"table": self.table})

    @classmethod
    def load(cls, folder: Path) -> Self:
        part = load_part(folder, KIND)
        return cls(part.tensors["table"], part.config["tokenizer_fingerprint"])

    @classmethod
    def for_tokenizer(cls, tokenizer: AudioTokenizer) -> Self:
        assert isinstance(tokenizer, FrameTable)
        return cls(tokenizer.table, tokenizer.fingerprint)

    @classmethod
    def training(
        cls, tokenizer: AudioTokenizer, options: Mapping[str, Any], seed: int
    ) -> "TableTraining":
        return TableTraining(tokenizer.vocab_size, tokenizer.fingerprint)


class FrameTableVocoderStream:
    def __init__(self, table: Tensor) -> None:
        self._table = table

    def push(self, codes: Tensor) -> Tensor:
        return self._table[codes[0]].flatten()

    def finish(self) -> Tensor:
        return torch.zeros(0)


class TableTraining(nn.Module):
    """Either of them: a table that comes near the frames heard."""

    sample_rate = 16_000
    hop_length = HOP
    whole = False

    def __init__(self, num_units: int, made_for: str | None) -> None:
        super().__init__()
        self.table = nn.Parameter(0.1 * torch.randn(num_units, HOP))
        self.unused = nn.Parameter(torch.zeros(1))  # as discriminators are at first
        self.dropout = nn.Dropout(0.1)  # so that the state of the random numbers counts
        self.register_buffer("heard", torch.zeros((), dtype=torch.int64))
        self._made_for = made_for
        self.needs: frozenset[Need] = frozenset() if made_for is None else frozenset({"units"})
        self.learning_rates = {"table": 2.0}

    def forward(self, batch: SegmentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        self.heard += 1
        loss = self._error(batch, self.dropout(batch.waves))
        return loss, {"error": loss, "number": torch.tensor(float(batch.number))}

    def measure(self, batch: SegmentBatch) -> dict[str, Tensor]:
        return {"loss": self._error(batch, batch.waves)}

    def part(self) -> FrameTable | FrameTableVocoder:
        if self._made_for is None:
            return FrameTable(self.table)
        return FrameTableVocoder(self.table, self._made_for)

    def _error(self, batch: SegmentBatch, waves: Tensor) -> Tensor:
        frames = waves.reshape(-1, HOP)
        if batch.units is not None:
            return (self.table[batch.units.flatten()] - frames).square().mean()
        return torch.cdist(frames, self.table).min(dim=1).values.square().mean()
