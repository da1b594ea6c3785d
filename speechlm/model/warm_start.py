"""A speech LM that starts from a text LM: the body stays, the vocabulary is a joint one.

Source:
    TWIST: Hassid et al. 2023, arXiv:2305.13009. Its speech tokens replace the text's, with an
    embedding drawn anew; ``keep_text`` keeps both, as models that read text do. New rows at the
    mean: Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from speechlm.errors import ConfigError, InputError
from speechlm.layouts.vocabulary import Vocabulary
from speechlm.model.architecture import DecoderConfig, DepthConfig
from speechlm.model.decoder import INIT_STD, Decoder

NOISE = 0.1
"""Spread of rows around the mean, as a share of the text's own: equal rows would be one unit."""


@torch.no_grad()
def warm_start(
    text_model: Decoder,
    vocabulary: Vocabulary,
    *,
    init: Literal["mean", "normal"] = "normal",
    keep_text: bool = True,
    seed: int = 0,
    dropout: float = 0.0,
    depth: DepthConfig | None = None,
) -> Decoder:
    """Give a text LM the ids of a vocabulary.

    Args:
        text_model: Such as :func:`~speechlm.model.hf.from_hf` gives. Its body is not copied:
            the result trains it.
        vocabulary: Its text tokens are the text LM's own ids, which keep their rows. The text
            LM may have more rows (padding, which is left out) or fewer (the others are new).
        init: How new rows start: ``normal`` draws them with a standard deviation of 0.02, as
            the paper's models were; ``mean`` is the mean of the text's rows and a little noise.
        keep_text: Copy the rows of text tokens; else they are new, too.
        seed: Of what is drawn.
        dropout: Of the result; a text LM as it is read has none.
        depth: A depth transformer to put on top, drawn anew.

    Returns:
        A decoder of ``vocabulary.size`` ids, on the text LM's device and in its dtype. Embedding
        and head are one matrix where they were one.

    Raises:
        InputError: The text LM is a speech LM already: it has a depth transformer.
        ConfigError: ``init`` is not known.
    """
    if init not in ("mean", "normal"):
        raise ConfigError(f"expected init mean or normal, got {init!r}")
    if text_model.config.depth is not None:
        raise InputError("expected a text LM to start from, got one with a depth transformer")
    config = replace(text_model.config, vocab_size=vocabulary.size, dropout=dropout, depth=depth)
    with torch.device("meta"):
        decoder = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    weights = text_model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = _joint_rows(weights[name], vocabulary, init, keep_text, generator)
    weights |= {
        f"depth.{name}": tensor.to(text_model.device, weights["model.norm.weight"].dtype)
        for name, tensor in _fresh_depth(config, seed).items()
    }
    decoder.load_state_dict(weights, assign=True)
    return decoder.train(text_model.training)


def _joint_rows(
    text: Tensor, vocabulary: Vocabulary, init: str, keep_text: bool, generator: torch.Generator
) -> Tensor:
    """Text rows [V_text, D] as joint ones [V, D]."""
    known = text[: min(len(text), vocabulary.text_size or len(text))]
    rows = torch.randn(vocabulary.size, text.shape[1], generator=generator).to(text.device)
    if init == "mean":
        wide = known.float()
        rows = wide.mean(dim=0) + NOISE * wide.std(dim=0, correction=0) * rows
    else:
        rows = INIT_STD * rows
    joint = rows.to(text.dtype)
    if keep_text and vocabulary.text_size:
        joint[vocabulary.first_text : vocabulary.first_text + len(known)] = known
    return joint


def _fresh_depth(config: DecoderConfig, seed: int) -> dict[str, Tensor]:
    """Weights of a new depth transformer; none where there is none."""
    if config.depth is None:
        return {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # As any new decoder draws them; of its body the least that there can be.
        small = Decoder(replace(config, num_layers=1, vocab_size=1, ffn_dim=1, max_positions=1))
    assert small.depth is not None
    return small.depth.state_dict()
