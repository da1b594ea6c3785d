"""Recognizers and text LMs of the hub, in place of the ones that come with speechlm.

Papers take Whisper and an LM of billions of weights; these classes open any such checkpoint of
transformers, a folder or a hub id, with the interfaces of :mod:`speechlm.evaluation.recognizer`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechlm.audio import resample
from speechlm.errors import CheckpointError, InputError
from speechlm.files import sha256_of


class HubTextModel:
    """Any causal LM of transformers, as it says how probable a text is.

    Args:
        source: Folder or hub id, such as ``"meta-llama/Llama-3.2-1B"``.
        device: Where it runs.

    Raises:
        CheckpointError: There is no such checkpoint, or it is of another kind.
    """

    def __init__(self, source: str | Path, device: str = "cpu") -> None:
        import transformers

        self._tokenizer = _open(transformers.AutoTokenizer.from_pretrained, source)
        self._model = _open(transformers.AutoModelForCausalLM.from_pretrained, source)
        self._model.to(device).eval()
        self.name = _name(source, self._model)

    def log_prob(self, text: str) -> tuple[float, int]:
        """Of a text: the sum of natural logarithms, and of how many tokens.

        Its end does not count. A beginning is put before it where the tokenizer has one: so the
        first token counts too, which it does not in slamkit for the LMs whose tokenizer puts none.

        Raises:
            InputError: The text is longer than what the LM can read.
        """
        ids: list[int] = self._tokenizer(text)["input_ids"]
        begin = self._tokenizer.bos_token_id
        if begin is not None and ids[:1] != [begin]:
            ids = [begin, *ids]
        if len(ids) > 1 and ids[-1] == self._tokenizer.eos_token_id:
            ids = ids[:-1]
        if len(ids) < 2:
            return 0.0, 0
        most = getattr(self._model.config, "max_position_embeddings", None)
        if most is not None and len(ids) > most:
            raise InputError(f"expected a text of at most {most} tokens, got {len(ids)}")
        given = torch.tensor([ids], device=self._model.device)
        with torch.inference_mode():
            logits = self._model(input_ids=given).logits[0, :-1].float()
        scores = logits.log_softmax(dim=1).gather(1, given[0, 1:, None])
        return float(scores.double().sum()), len(ids) - 1


class WhisperRecognizer:
    """Whisper, and whatever else transformers recognizes speech with in the same way.

    Args:
        source: Folder or hub id, such as ``"openai/whisper-large-v3-turbo"``.
        device: Where it runs.
        language: What is spoken, as ``"en"``; None to let the model hear it.

    Raises:
        CheckpointError: There is no such checkpoint, or it is of another kind.
    """

    def __init__(
        self, source: str | Path, device: str = "cpu", language: str | None = None
    ) -> None:
        import transformers

        self._processor = _open(transformers.AutoProcessor.from_pretrained, source)
        self._model = _open(transformers.AutoModelForSpeechSeq2Seq.from_pretrained, source)
        self._model.to(device).eval()
        self._options = {} if language is None else {"language": language}
        self.name = _name(source, self._model)

    def transcribe_many(
        self, waves: Sequence[Tensor], sample_rate: int, num_workers: int = 0
    ) -> list[str]:
        """The text of each recording as the model writes it, the most probable token each time.

        Args:
            waves: float32 [T] each; what is longer than the model's window is heard window by
                window.
            sample_rate: Their rate, Hz.
            num_workers: Not needed: the model has its device.
        """
        return [self._transcribe(wave, sample_rate) for wave in waves]

    def _transcribe(self, wave: Tensor, sample_rate: int) -> str:
        extractor = self._processor.feature_extractor
        heard = resample(wave, sample_rate, extractor.sampling_rate)
        texts = []
        for window in torch.split(heard, extractor.n_samples):
            features = extractor(
                window.numpy(),
                sampling_rate=extractor.sampling_rate,
                return_tensors="pt",
                return_attention_mask=True,
            )
            with torch.inference_mode():
                ids = self._model.generate(
                    features["input_features"].to(self._model.device, self._model.dtype),
                    attention_mask=features["attention_mask"].to(self._model.device),
                    do_sample=False,
                    num_beams=1,
                    **self._options,
                )
            texts.append(self._processor.batch_decode(ids, skip_special_tokens=True)[0].strip())
        return " ".join(text for text in texts if text)


def _open(load: Callable[..., Any], source: str | Path) -> Any:
    try:
        return load(str(source), trust_remote_code=False)
    except Exception as error:  # transformers raises whatever a broken file makes it
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{source}: not a checkpoint that transformers opens here: {reason}"
        ) from error


def _name(source: str | Path, model: Any) -> str:
    """What rows of results say: the checkpoint's name, and which version of it."""
    folder = Path(source)
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(folder.glob("*")):
            if path.is_file():
                digest.update(f"{path.name} {sha256_of(path)}".encode())
        return f"{folder.resolve().name}-{digest.hexdigest()[:12]}"
    commit = getattr(model.config, "_commit_hash", None)
    return f"{source}-{commit[:12]}" if commit else str(source)
