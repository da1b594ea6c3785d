"""A tokenizer, a unit LM and a vocoder that were made for each other, in one folder.

::

    bundle/
      speechlm.json     which three parts belong together, by fingerprint; the voice of answers
      tokenizer/  lm/  vocoder/
      README.md         what it is, for a person
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from speechlm import __version__
from speechlm.audio import load_audio
from speechlm.config import RunConfig, SamplingConfig
from speechlm.data.corpus import open_corpus
from speechlm.errors import CheckpointError, FingerprintError
from speechlm.files import read_json, write_folder_aside, write_json
from speechlm.generation.generate import generate, generate_stream
from speechlm.generation.rendering import Rendering
from speechlm.layouts.grid import Prompt
from speechlm.model.fast_linear import Weights
from speechlm.model.unit_lm import UnitLM
from speechlm.parts import CONFIG_NAME
from speechlm.plugins import load_tokenizer, load_vocoder
from speechlm.protocols import AudioTokenizer, Speaker, Vocoder
from speechlm.resynthesis import Resynthesizer
from speechlm.speaker import EMBEDDING_DIM, SAMPLE_RATE, default_speaker_encoder
from speechlm.units import Units

BUNDLE_NAME = "speechlm.json"
VOICE_ANSWERS = 20
"""Of which a bundle's voice is taken where the corpus has answers."""


class SpeechLM(Resynthesizer):
    """Speech in, speech out.

    >>> model = SpeechLM.from_pretrained("runs/demo/bundle")  # doctest: +SKIP
    >>> answer = model.reply(wave, sample_rate)  # doctest: +SKIP

    Raises:
        FingerprintError: A part was made for another tokenizer.
    """

    def __init__(
        self,
        tokenizer: AudioTokenizer,
        lm: UnitLM,
        vocoder: Vocoder,
        voice: Tensor | None = None,
    ) -> None:
        made_for = lm.vocabulary.tokenizer_fingerprint
        if made_for != tokenizer.fingerprint:
            raise FingerprintError(
                part="the unit LM",
                expected=made_for,
                got=tokenizer.fingerprint,
                remedy="the tokenizer was fitted again or mixed up: "
                "put the old one back, or tokenize and train again",
            )
        super().__init__(tokenizer, vocoder)
        self.lm = lm
        self.voice = voice
        """What answers are spoken in, float32 [D], for vocoders that take a voice; None for the
        vocoder's own. ``speaker`` goes before it."""
        self.weights: Weights = "float32"
        """What the LM decodes with; ``bfloat16`` or ``int8`` for speed."""

    @classmethod
    def from_pretrained(cls, folder_or_id: str | Path, device: str = "cpu") -> Self:
        """Load a bundle's folder, or download one from the Hugging Face hub.

        Args:
            folder_or_id: A folder, or a hub id such as ``"name/bundle"``.
            device: Where the LM runs.

        Raises:
            CheckpointError: Missing, partial, or changed since it was saved.
            FingerprintError: The parts were not made for each other.
        """
        folder = _bundle_folder(folder_or_id)
        recorded = read_json(folder / BUNDLE_NAME)
        bundle = cls(
            load_tokenizer(folder / "tokenizer"),
            UnitLM.load(folder / "lm", device),
            load_vocoder(folder / "vocoder"),
            torch.tensor(recorded["voice"]) if recorded.get("voice") else None,
        )
        for part, fingerprint in bundle._fingerprints().items():
            if recorded.get(part) != fingerprint:
                raise FingerprintError(
                    part=f"{folder}",
                    expected=str(recorded.get(part)),
                    got=fingerprint,
                    remedy=f"its {part} was exchanged: save the bundle again",
                )
        return bundle

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the bundle, whole or not at all."""
        with write_folder_aside(Path(folder)) as aside:
            self.tokenizer.save(aside / "tokenizer")
            self.lm.save(aside / "lm")
            self.vocoder.save(aside / "vocoder")
            recorded: dict[str, Any] = {"speechlm": __version__, **self._fingerprints()}
            if self.voice is not None:
                recorded["voice"] = self.voice.tolist()
            write_json(aside / BUNDLE_NAME, recorded)
            (aside / "README.md").write_text(self._card(), encoding="utf-8")

    @property
    def reply_voice(self) -> Speaker | None:
        """What answers are spoken in: the ``speaker`` that is set, else the bundle's voice."""
        return self.voice if self.speaker is None else self.speaker

    def reply(
        self,
        wave: Tensor,
        sample_rate: int,
        *,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Answer a spoken question.

        Args:
            wave: The question, float [T] or [channels, T].
            sample_rate: Its rate, Hz.
            sampling: How units are drawn; the most probable each time by default.
            seed: Decides the draw; the same seed gives the same answer.

        Returns:
            The answer, float32 [T'] at :attr:`sample_rate`; empty when the LM says nothing.

        Raises:
            AudioError: The recording cannot be used.
            InputError: It is longer than the LM's context.
        """
        units = self.reply_units([self.encode(wave, sample_rate)], sampling=sampling, seeds=[seed])
        return self.vocoder.decode(units, speaker=self.reply_voice)[0]

    def reply_units(
        self,
        questions: Sequence[Units],
        *,
        sampling: SamplingConfig | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Units]:
        """Answer a batch; each answer is what the question would get alone."""
        return self._continue("question", questions, sampling, seeds)

    def reply_stream(
        self,
        wave: Tensor,
        sample_rate: int,
        *,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
    ) -> Iterator[Tensor]:
        """Answer as sound comes: chunks float32 [n] that add up to :meth:`reply`."""
        prompt = self._prompt("question", self.encode(wave, sample_rate))
        rendering = Rendering(self.lm, self.vocoder, prompt, self.reply_voice)
        sampling = sampling or SamplingConfig()
        drawn = generate_stream(
            self.lm,
            prompt,
            sampling,
            seed,
            unconditioned=self._unconditioned("question", sampling),
            weights=self.weights,
        )
        for column in drawn:
            piece = rendering.push(column)
            if piece is not None and len(piece.sound):
                yield piece.sound
        yield rendering.finish().sound

    def continue_speech(
        self,
        wave: Tensor,
        sample_rate: int,
        *,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Go on speaking where a recording ends, in its voice; arguments as :meth:`reply`.

        Returns:
            What follows, without the recording, float32 [T'] at :attr:`sample_rate`.
        """
        units = self.encode(wave, sample_rate)
        continued = self.continue_units([units], sampling=sampling, seeds=[seed])
        return self.vocoder.decode(continued, speaker=self.voice_of(wave, sample_rate))[0]

    def continue_units(
        self,
        recordings: Sequence[Units],
        *,
        sampling: SamplingConfig | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Units]:
        """Continue a batch, each as it would be alone."""
        return self._continue("speech", recordings, sampling, seeds)

    def log_likelihood(self, wave: Tensor, sample_rate: int) -> float:
        """How probable the LM finds a recording's units: the sum of natural logarithms."""
        units = self.encode(wave, sample_rate)
        sequence = self.lm.layout.encode(self.lm.vocabulary, {"speech": units.codes})
        return float(self.lm.log_likelihood([sequence])[0])

    def _continue(
        self,
        field: str,
        given: Sequence[Units],
        sampling: SamplingConfig | None,
        seeds: Sequence[int] | None,
    ) -> list[Units]:
        prompts = [self._prompt(field, units) for units in given]
        sampling = sampling or SamplingConfig()
        outputs = generate(
            self.lm,
            prompts,
            sampling,
            [0] * len(prompts) if seeds is None else seeds,
            unconditioned=self._unconditioned(field, sampling),
            weights=self.weights,
        )
        return [
            replace(units, codes=self._read(field, prompt, columns), durations=None)
            for units, prompt, columns in zip(given, prompts, outputs, strict=True)
        ]

    def _prompt(self, field: str, units: Units) -> Prompt:
        self.lm.vocabulary.check(units)
        return self.lm.layout.prompt(self.lm.vocabulary, {field: units.codes})

    def _unconditioned(self, field: str, sampling: SamplingConfig) -> Prompt | None:
        """The prompt that says nothing, which guidance leads away from."""
        if sampling.guidance == 1:
            return None
        nothing = torch.zeros(self.tokenizer.num_codebooks, 0, dtype=torch.int64)
        return self.lm.layout.prompt(self.lm.vocabulary, {field: nothing})

    def _read(self, field: str, prompt: Prompt, columns: Tensor) -> Tensor:
        """The units that columns int64 [R, n] hold after a prompt, int64 [K, F]."""
        content = self.lm.layout.read(self.lm.vocabulary, prompt, columns)
        return content["answer" if field == "question" else "speech"]

    def _fingerprints(self) -> dict[str, str]:
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "lm": self.lm.fingerprint,
            "vocoder": self.vocoder.fingerprint,
        }

    def _card(self) -> str:
        parameters = sum(weight.numel() for weight in self.lm.decoder.parameters())
        return (
            "# A speech language model\n\n"
            f"| part | what |\n|---|---|\n"
            f"| tokenizer | `{self.tokenizer.fingerprint}`: {self.tokenizer.vocab_size} units at "
            f"{self.tokenizer.frame_rate:g} Hz |\n"
            f"| unit LM | `{self.lm.fingerprint}`: {parameters / 1e6:.1f} M parameters |\n"
            f"| vocoder | `{self.vocoder.fingerprint}`: {self.vocoder.sample_rate} Hz |\n\n"
            "```python\nfrom speechlm import SpeechLM\n\n"
            'model = SpeechLM.from_pretrained("this folder")\n'
            "answer = model.reply(wave, sample_rate)\n```\n"
        )


def assemble(config: RunConfig) -> None:
    """Put a run's tokenizer, trained LM and vocoder together as its bundle."""
    tokenizer = load_tokenizer(config.tokenizer_path)
    vocoder = choose_vocoder(config, tokenizer)
    lm = UnitLM.load(config.train_path / "lm")
    voice = answering_voice(config, vocoder)
    SpeechLM(tokenizer, lm, vocoder, voice).save_pretrained(config.bundle_path)


def answering_voice(config: RunConfig, vocoder: Vocoder) -> Tensor | None:
    """The voice that ``vocoder.voice`` names, else that of the corpus' answers, float32 [D].

    Returns:
        None where the vocoder takes no such voice, or the corpus has no answers.

    Raises:
        AudioError: The recording named cannot be used.
        PluginError: The speaker encoder is not installed.
    """
    if getattr(vocoder, "speaker_dim", 0) != EMBEDDING_DIM:
        return None
    if config.vocoder.voice is not None:
        wave = load_audio(config.vocoder.voice, SAMPLE_RATE)
        return default_speaker_encoder().embed(wave, SAMPLE_RATE)
    if not config.corpus_path.exists():
        return None
    corpus = open_corpus(config.corpus_path)
    wanted = {one.reply for one in corpus if one.reply is not None}
    answers = sorted((one for one in corpus if one.id in wanted), key=lambda one: one.id)
    # Answers of several people have no common voice: it is that of whoever gives most.
    speakers = Counter(one.speaker for one in answers)
    answers = [one for one in answers if one.speaker == speakers.most_common(1)[0][0]]
    if not answers:
        return None
    heard = torch.cat([one.load(SAMPLE_RATE) for one in answers[:VOICE_ANSWERS]])
    return default_speaker_encoder().embed(heard, SAMPLE_RATE)


def choose_vocoder(config: RunConfig, tokenizer: AudioTokenizer) -> Vocoder:
    """A run's vocoder: the one that is named or was trained, else what the tokenizer names.

    Raises:
        PluginError: It must be trained first, or none is named for this tokenizer.
    """
    if (config.vocoder_path / CONFIG_NAME).is_file() or config.vocoder.path is not None:
        return load_vocoder(config.vocoder_path, tokenizer)
    return load_vocoder(config.vocoder.name, tokenizer)


def _bundle_folder(folder_or_id: str | Path) -> Path:
    folder = Path(folder_or_id)
    if (folder / BUNDLE_NAME).is_file():
        return folder
    if folder.exists() or len(folder.parts) != 2:
        raise CheckpointError(
            f"{folder} is not a bundle: it holds no {BUNDLE_NAME}; "
            "'speechlm train' writes one, RUN/bundle"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        downloaded = Path(snapshot_download(str(folder)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{folder} is neither a bundle's folder here nor one that the hub gives: {reason}"
        ) from error
    if not (downloaded / BUNDLE_NAME).is_file():
        raise CheckpointError(f"{folder} on the hub is not a bundle: it holds no {BUNDLE_NAME}")
    return downloaded
