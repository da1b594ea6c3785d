"""A text LM and tokenizer of the toy store's words, as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_store import WORDS

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

VOCABULARY = ("<unk>", "what", "is", *WORDS)


def text_tokenizer() -> transformers.PreTrainedTokenizerFast:
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def write_text_lm(folder: Path, *, seed: int = 0) -> transformers.LlamaForCausalLM:
    """Write a small Llama, which has some more rows than its tokenizer has tokens."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(VOCABULARY) + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)
    return model
