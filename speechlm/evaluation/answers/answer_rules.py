"""What a free answer says, by rules: a letter, yes or no, the words of a reference.

An answer that no rule reads is None, which is neither right nor wrong: a benchmark counts it in a
figure of its own. Rules never guess.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

_STATED = (
    r"\b(?:answer|option|choice|choose|select|pick|suggest|say|be|is)\b"
    r"(?:\s+(?:is|be|option|choice|letter|therefore|probably|likely|most|would|should|the|to))*"
    r"[\s:\"'(]*"
)
"""What leads up to a letter that is the answer."""


def find_choice(text: str, letters: str = "ABCD") -> str | None:
    """The letter that an answer picks; None if it picks none, or several.

    Read in this order, and the first rule that finds a letter decides: the whole answer is one;
    it begins with one and a mark ("B. Paris"); "the answer is B", "I would choose option B" and
    the like; "B is the best"; a lone letter in brackets, or before a mark. "a" before most words
    is an article.
    """
    plain = re.sub(r"\\(?:boxed|text|textbf|mathbf)\b|[*{}\\$]", " ", text)
    plain = " ".join(re.sub("[\u2018\u2019]", "'", re.sub("[\u201c\u201d]", '"', plain)).split())
    letter = f"([{letters.upper()}{letters.lower()}])"
    end = r"(?=[.,:;!?)\"']|\s*$)"
    another = rf"\W*(?:and|or)\W+{letter}\b"
    rules = (
        rf"^\W*{letter}\W*$",
        rf"^\W*{letter}\s?[.,:)](?=\s|$)(?!{another})",
        rf"(?i:{_STATED}){letter}(?:{end}|(?=\s))",
        rf"(?:^|[\s(\"']){letter}[)\"']?\s(?=(?:is|would be)(?: the)? (?:best|correct|right))",
        rf"(?:^|[\s(\"']){letter}{end}",
    )
    for rule in rules:
        found = set()
        for match in re.finditer(rule, plain):
            after = plain[match.end(1) :]
            if match[1] == "a" and re.match(r"\s+(?!because|since|which|is\b|would\b)\w", after):
                continue  # the article
            if re.match(r"'\w", after):
                continue  # "a's", "d'you"
            found.add(match[1].upper())
            found |= {beside[1].upper() for beside in [re.match(another, after)] if beside}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


_NO_SENSE = {
    "sports": (
        r"\b(?:implausible|unlikely|improbable|(?:not|isn't|n't)(?: \w+)? (?:plausible|possible"
        r"|likely|accurate|realistic))\b",
        r"\b(?:plausible|possible|likely|realistic)\b",
    ),
    "navigate": (
        r"\b(?:not|n't|never)(?: \w+){0,4} (?:return|back|starting point|where you started)\b",
        r"\b(?:return|back|end up|are|be|at)(?: \w+){0,4} (?:starting point|where you started)\b",
    ),
    "web_of_lies": (
        r"\b(?:(?:not|n't)(?: \w+)? (?:tell|telling|truthful)|lies|lying|is a liar)\b",
        r"\b(?:tells?|telling) the truth\b|\btruthful\b",
    ),
}
"""How answers to tasks of BIG-bench hard say no, and yes, without those words."""


def find_yes_no(text: str, task: str = "") -> bool | None:
    """Whether an answer says yes; None if it says neither, or both.

    Read in this order: it begins with yes or no; "the answer is yes"; it ends with one of them;
    what a task of BIG-bench hard (``sports``, ``navigate``, ``web_of_lies``) says instead.
    """
    plain = re.sub(r"[^\w\s']", " ", text.lower().replace("\u2019", "'"))
    plain = " ".join(plain.split())
    for rule in (
        r"^(yes|no)\b",
        r"\banswer (?:to \w+(?: \w+){0,4} )?(?:is|would be|should be) (yes|no)\b",
        r"\b(yes|no)$",
    ):
        said = set(re.findall(rule, plain))
        if said:
            return said == {"yes"} if len(said) == 1 else None
    for name, (negative, positive) in _NO_SENSE.items():
        if name in task:
            if re.search(negative, plain):
                return False
            return True if re.search(positive, plain) else None
    return None


def plain_words(text: str) -> list[str]:
    """Words of a text in small letters without punctuation and articles.

    Source:
        The normalisation of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    kept = "".join(char for char in text.lower() if unicodedata.category(char)[0] != "P")
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def contains_reference(text: str, reference: str) -> bool:
    """Whether an answer has the words of a reference, in a row and in order."""
    words, wanted = plain_words(text), plain_words(reference)
    starts = range(len(words) - len(wanted) + 1)
    return bool(wanted) and any(words[at : at + len(wanted)] == wanted for at in starts)


def token_f1(text: str, reference: str) -> float:
    """F1 of the words of an answer against those of a reference, 0 to 1."""
    words, wanted = Counter(plain_words(text)), Counter(plain_words(reference))
    shared = (words & wanted).total()
    if not shared:
        return 0.0
    precision, recall = shared / words.total(), shared / wanted.total()
    return 2 * precision * recall / (precision + recall)


def majority(verdicts: Sequence[bool | None]) -> bool:
    """Whether more than half say yes; what could not be read does not."""
    return 2 * sum(verdict is True for verdict in verdicts) > len(verdicts)
