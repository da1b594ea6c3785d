"""What is said, as labels: phones of the International Phonetic Alphabet, or characters.

Phones come from espeak-ng (GPL-3, hence the optional extra ``speechlm[corpus]``), which reads
more than a hundred languages. A label is one symbol, not one phoneme of one language: a
diphthong is two of them, a long vowel is a vowel and a length mark. So one table holds every
language, and no inventory has to be collected before training.
"""

# ruff: noqa: RUF001 (letters of the phonetic alphabet are meant as they are)

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from speechlm.errors import ConfigError, InputError, PluginError

LabelKind = Literal["phones", "characters"]

IPA = (
    "aeiouyæøœɐɑɒɔɘəɚɛɜɝɞɤɨɪɯɵɶʉʊʌʏᵻ"  # vowels
    "bcdfhjklmnpqrstvwxzçðħŋɓɕɖɗɟɠɡɢɣɥɦɧɫɬɭɮɰɱɲɳɴɸɹɺɻɽɾʀʁʂʃʄʈʋʍʎʐʑʒʔʕʙʛʝʟʡʢβθχ"
    "ʘǀǁǂǃ"  # clicks
    "ːˑʰʲʷˠˤⁿᵐ\u0303"  # length; aspirated, palatalised and other ways to say; nasal
    "123456789"  # tones, as espeak-ng numbers them
)
"""Every label of speech in any language. Stress, ties and finer diacritics are left out."""

CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"
"""Labels of written English."""

_SPELLED = str.maketrans(
    {
        "ʦ": "ts", "ʣ": "dz", "ʧ": "tʃ", "ʤ": "dʒ", "ʨ": "tɕ", "ʥ": "dʑ",
        "ε": "ɛ", "Φ": "ɸ", "ᵝ": "β", "g": "ɡ",
        "A": "ɑ", "E": "ɛ", "F": "ɱ", "K": "ɬ", "N": "ŋ", "S": "ʃ", "X": "χ", "Z": "ʒ",
    }
)  # fmt: skip
"""One spelling each: ligatures, and letters for which espeak-ng keeps its own notation."""

_LANGUAGE_SWITCH = re.compile(r"\([a-z0-9-]+\)")
_MARKS = ("Mn", "Lm")
"""Unicode categories of diacritics; those that the table lacks are finer than it tells apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Texts to labels and back. Label 0 is left free, for what CTC calls blank."""

    kind: LabelKind = "phones"
    language: str = "en-us"
    """For phones: espeak-ng's code of the language."""
    alphabet: str = ""
    """Each label's character; empty for :data:`IPA`, or :data:`CHARACTERS`."""

    def __post_init__(self) -> None:
        if not self.alphabet:
            object.__setattr__(self, "alphabet", IPA if self.kind == "phones" else CHARACTERS)
        twice = {symbol for symbol in self.alphabet if self.alphabet.count(symbol) > 1}
        if twice:
            raise ConfigError(
                f"alphabet: expected each character once, got {''.join(sorted(twice))!r} again"
            )

    def __len__(self) -> int:
        """Labels, the blank not counted."""
        return len(self.alphabet)

    def check(self) -> None:
        """Make sure that texts can be read at all.

        Raises:
            PluginError: For phones: espeak-ng is not installed.
            ConfigError: It does not know the language.
        """
        if self.kind == "phones":
            phones("a", self.language)

    def encode(self, text: str) -> list[int]:
        """The labels of a text, each from 1 to ``len(self)``.

        Raises:
            InputError: The text says nothing, or something that no label stands for.
            PluginError: For phones: espeak-ng is not installed.
        """
        said = phones(text, self.language) if self.kind == "phones" else _characters(text)
        places = _places(self.alphabet)
        labels = [places[symbol] for symbol in said if symbol in places]
        unknown = {s for s in said if s not in places and not _is_punctuation(s)}
        if unknown:
            raise InputError(
                f"no label for {''.join(sorted(unknown))!r} of the text {_shortened(text)}; "
                "expected nothing but characters of tokenizer.options.alphabet "
                f"({_shortened(self.alphabet)}): add to it, or write the text otherwise"
            )
        if not labels:
            raise InputError(f"expected a text that says something, got {_shortened(text)}")
        return labels

    def decode(self, labels: Iterable[int]) -> str:
        """What labels stand for, blanks left out."""
        return "".join(self.alphabet[label - 1] for label in labels if label > 0)


def phones(text: str, language: str = "en-us") -> str:
    """What a text sounds like, one symbol of :data:`IPA` a sound, words run together.

    >>> phones("What comes after seven?")  # doctest: +SKIP
    'wʌtkʌmzæftɚsɛvən'

    Raises:
        PluginError: espeak-ng is not installed.
        ConfigError: It does not know the language.
    """
    return _symbols(_Reader.get().read(text, language))


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Fewest insertions, deletions and substitutions that make one sequence the other."""
    row = list(range(len(other) + 1))
    for count, symbol in enumerate(one, start=1):
        diagonal, row[0] = row[0], count
        for column, facing in enumerate(other, start=1):
            kept = diagonal + (symbol != facing)
            diagonal = row[column]
            row[column] = min(kept, diagonal + 1, row[column - 1] + 1)
    return row[-1]


@functools.lru_cache(4)
def _places(alphabet: str) -> dict[str, int]:
    return {symbol: place for place, symbol in enumerate(alphabet, start=1)}


def _is_punctuation(symbol: str) -> bool:
    return unicodedata.category(symbol)[0] in "PSZC"


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _characters(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


@functools.lru_cache(65_536)
def _symbols(raw: str) -> str:
    """espeak-ng's phonemes as symbols of the table, without marks that it leaves out."""
    said = _LANGUAGE_SWITCH.sub("", raw).translate(_SPELLED)
    known = _places(IPA)
    spread = "".join(s if s in known else unicodedata.normalize("NFD", s) for s in said)
    return "".join(
        symbol
        for symbol in spread.translate(_SPELLED)
        if symbol in known
        or not (_is_punctuation(symbol) or unicodedata.category(symbol) in _MARKS)
    )


class _Reader:
    """espeak-ng as a reader of texts that never speaks.

    The library keeps its state in global variables, the chosen voice among them. A copy of its
    file, loaded as a library of its own, has variables of its own: reading here and speaking in
    :mod:`speechlm.data.espeak` do not disturb each other.
    """

    _UTF8 = 1
    _IPA = 2
    _SYNCHRONOUS = 2

    @staticmethod
    @functools.cache
    def get() -> _Reader:
        return _Reader()

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise PluginError(
                "phones of texts need espeak-ng, which is not installed; "
                "pip install 'speechlm[corpus]', or set tokenizer.options.labels=characters"
            ) from None
        data = espeakng_loader.get_data_path()
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "espeak-ng.library"
            try:
                shutil.copyfile(espeakng_loader.get_library_path(), copy)
                self._library = ctypes.CDLL(str(copy))
            except OSError as error:
                raise PluginError(
                    f"espeak-ng's library cannot be loaded ({error}); "
                    "reinstall it: pip install --force-reinstall espeakng-loader"
                ) from error
        if self._library.espeak_Initialize(self._SYNCHRONOUS, 0, str(data).encode(), 0) < 1:
            raise PluginError(f"espeak-ng cannot read its data in {data}; reinstall it")
        self._read = self._library.espeak_TextToPhonemes
        self._read.restype = ctypes.c_char_p
        self._read.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
        self._language = ""

    def read(self, text: str, language: str) -> str:
        if language != self._language:
            if self._library.espeak_SetVoiceByName(language.encode()) != 0:
                raise ConfigError(
                    f"espeak-ng has no language {language!r}; expected a code such as en-us, "
                    "de, fr, es or cmn in tokenizer.options.language"
                )
            self._language = language
        rest = ctypes.c_char_p(text.replace("\0", " ").encode())
        clauses = []
        while rest.value is not None:  # the library moves it on, a clause at a time
            clauses.append((self._read(ctypes.byref(rest), self._UTF8, self._IPA) or b"").decode())
        return " ".join(clauses)
