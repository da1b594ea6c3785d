"""The depth transformer."""

from __future__ import annotations

from torch import nn

from speechlm.model.architecture import DecoderConfig


class DepthTransformer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
