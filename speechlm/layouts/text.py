"""Text tokens: any Hugging Face tokenizer, named by what it does.

``transformers`` is imported when a tokenizer is loaded.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from speechlm.errors import CheckpointError, InputError
from speechlm.files import write_folder_aside

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
PATTERNS = (*TOKENIZER_FILES, "merges.txt", "special_tokens_map.json", "added_tokens.json")
"""What a tokenizer is made of; ``config.json`` says which kind where those files do not."""
PROBES = (
    "Hello, world! It's 12:34:56 on 2023-05-22.",
    "  two  spaces,\ttab\nand\n\nlines  ",
    "\u00c4\u00d6\u00dc na\u00efve \ufb01 \u2163 e\u0301",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \U0001f642 \u200b\u00a0end",
    "camelCase snake_case 100000 1,000.5 ALLCAPS (parens) [x] {y} <z> \\n",
)
"""Texts whose tokens tell tokenizers of one vocabulary apart."""


class TextTokenizer:
    """Text to token ids ``0..size - 1`` and back; the tokenizer's own ids, without extras.

    >>> text = TextTokenizer.load("HuggingFaceTB/SmolLM2-135M")  # doctest: +SKIP
    >>> text.decode(text.encode("so it goes"))  # doctest: +SKIP
    'so it goes'
    """

    def __init__(self, tokenizer: Any) -> None:
        """Take a tokenizer of ``transformers``, a fast one."""
        if not tokenizer.is_fast:
            raise InputError(
                f"expected a text tokenizer with a tokenizer.json, got {type(tokenizer).__name__}"
            )
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        if not vocabulary:
            raise InputError("expected a text tokenizer of at least 1 token, got none")
        self.size = max(vocabulary.values()) + 1
        """Ids, among them such as no token has."""

    @classmethod
    def load(cls, path_or_id: str | Path) -> Self:
        """Open a folder, or download one from the Hugging Face hub.

        Raises:
            CheckpointError: There is no tokenizer, or ``transformers`` cannot open it.
        """
        folder = _tokenizer_folder(path_or_id)
        import transformers

        auto: Any = transformers.AutoTokenizer  # typed in some versions only
        try:
            # Nothing of what a repository may hold is run.
            tokenizer = auto.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # transformers raises whatever a broken file makes it
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"transformers cannot open the text tokenizer of {path_or_id}: {reason}"
            ) from error
        return cls(tokenizer)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files, all or none, in place of another tokenizer's.

        Raises:
            InputError: The folder holds other things, which would be lost.
        """
        folder = Path(folder)
        known = {*PATTERNS, "chat_template.jinja"}
        others = {path.name for path in folder.iterdir()} - known if folder.is_dir() else set()
        if others or folder.is_file():
            raise InputError(
                f"{folder} holds {min(others, default='a file')}; expected a folder of its own "
                "for the text tokenizer"
            )
        with write_folder_aside(folder) as aside:
            self._tokenizer.save_pretrained(aside)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the tokenizer, as ``text-0123456789abcdef``.

        Made of its tokens, its merges and what it makes of some texts, not of its files, which
        differ between versions of ``transformers``.
        """
        described = json.dumps(
            [
                sorted((index, token) for token, index in self._tokenizer.get_vocab().items()),
                self._merges(),
                [self.encode(probe).tolist() for probe in PROBES],
            ]
        )
        return f"text-{hashlib.sha256(described.encode()).hexdigest()[:16]}"

    def encode(self, text: str) -> Tensor:
        """The tokens of a text, int64 [T], T >= 0, without a beginning or an end added."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return torch.tensor(ids, dtype=torch.int64)

    def encode_words(self, words: Sequence[str]) -> list[Tensor]:
        """The tokens of each word of a text: int64 [T_i] each.

        Together they are the tokens of the words with a space between each two. A space belongs
        to the word after it, a token that spans several words to the last of them.
        """
        encoded = self._tokenizer(
            " ".join(words), add_special_tokens=False, return_offsets_mapping=True
        )
        ends = [end - 1 for end in itertools.accumulate(len(word) + 1 for word in words)]
        found: list[list[int]] = [[] for _ in words]
        for token, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            found[bisect.bisect_left(ends, end)].append(token)
        return [torch.tensor(tokens, dtype=torch.int64) for tokens in found]

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of tokens, int64 [T]; special tokens are left out.

        Raises:
            InputError: A token is not in ``0..size - 1``.
        """
        ids = [int(token) for token in tokens]
        if ids and not 0 <= min(ids) <= max(ids) < self.size:
            raise InputError(
                f"expected text tokens in 0..{self.size - 1}, got {min(ids)}..{max(ids)}"
            )
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _merges(self) -> list[list[str]]:
        model = json.loads(self._tokenizer.backend_tokenizer.to_str())["model"]
        # Older versions write a pair as one text.
        return [
            pair.split(" ") if isinstance(pair, str) else list(pair)
            for pair in model.get("merges") or []
        ]


def _tokenizer_folder(path_or_id: str | Path) -> Path:
    folder = Path(path_or_id)
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        return folder
    if folder.exists() or len(folder.parts) != 2:
        raise CheckpointError(
            f"{folder} is not a text tokenizer: it holds no {TOKENIZER_FILES[0]}; expected a "
            "folder that transformers saved, or a hub id such as HuggingFaceTB/SmolLM2-135M"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = [*PATTERNS, "config.json"]
    try:
        downloaded = Path(snapshot_download(str(folder), allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{folder} is neither a text tokenizer's folder here nor one that the hub gives: "
            f"{reason}"
        ) from error
    if not any((downloaded / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(f"{folder} on the hub holds no text tokenizer")
    return downloaded
