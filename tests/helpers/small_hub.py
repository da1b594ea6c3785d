"""Small random text LMs and a Whisper with their tokenizers, saved as the hub's checkpoints are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizerFast,
)


def _letters() -> dict[str, int]:
    return {
        letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }


def _byte_level(special: list[str]) -> Tokenizer:
    """Bytes alone, without merges, and tokens of one's own behind them."""
    tokenizer = Tokenizer(models.BPE(_letters(), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer


def write_gpt2(folder: Path) -> GPT2LMHeadModel:
    """A tokenizer that puts nothing before a text."""
    tokenizer = _byte_level(["<|endoftext|>"])
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end
    ).save_pretrained(folder)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=257, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    )
    model.save_pretrained(folder)
    return model.eval()


def write_llama(folder: Path) -> LlamaForCausalLM:
    """A tokenizer that puts a beginning before each text."""
    tokenizer = _byte_level(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model.eval()


SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")


def write_whisper(folder: Path, seed: int = 0) -> WhisperForConditionalGeneration:
    """English alone, windows of a second; it writes letters, sixteen at the most."""
    end, start, plain = range(256, 259)
    special: dict[str, Any] = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[0]}
    tokenizer = WhisperTokenizerFast(
        tokenizer_object=_byte_level(list(SPECIAL)),
        unk_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        **special,
    )
    extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=259,
        num_mel_bins=20,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=50,
        max_target_positions=20,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        init_std=1.0,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config.forced_decoder_ids = None
    model.generation_config.no_timestamps_token_id = plain
    model.generation_config.is_multilingual = False
    letters = {_letters()[letter] for letter in "abcdefghij\u0120"}  # the last one is a space
    silent = sorted({*range(259)} - letters - {end})
    model.generation_config.suppress_tokens = silent
    model.generation_config.begin_suppress_tokens = [end]
    model.generation_config.max_length = 16
    model.save_pretrained(folder)
    return model.eval()
