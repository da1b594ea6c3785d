"""Dialogues of two speakers, planned: what a user says, and what the model makes of it.

The questions of :mod:`speechlm.data.questions`, and beside them what a model that listens while
it speaks has to tell apart: requests with long answers, into which the user cuts in or gives a
back-channel; pauses within a sentence; and remarks that nobody has to answer. When exactly all
this happens follows from how long the recordings are (:mod:`speechlm.data.dialogue_rendering`).

Sources:
    Stivers et al. 2009, doi:10.1073/pnas.0903616106, for how soon people answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from speechlm.data.espeak import Voice
from speechlm.data.questions import Question

QUESTIONS_EACH = 3
"""Questions of a dialogue."""
HELD_OUT = 36
"""Questions that a voice of validation or test asks; one of training asks all."""
EXTRA = 0.6
"""How often a dialogue has a list or a remark besides."""
LIST = 0.65
"""How often that is a list."""
UNDISTURBED, ACKNOWLEDGED = 0.2, 0.4
"""How often a list is heard to its end without a word, and with a back-channel; else the user
cuts in."""
STOPPED = 0.4
"""How often a user who cuts in only wants silence; else there is another question."""
PAUSES = 0.35
"""How often the user pauses within a sentence."""
PAUSE_S = (0.2, 0.8)
GAP_S, GAP_DEVIATION_S, GAP_LIMITS_S = 0.22, 0.07, (0.16, 0.4)
"""From the end of a question to the answer: mean, spread, and least and most. Sooner than the
least the model could not have heard that the user is done."""
REST_S = (0.3, 1.2)
"""Silence before the user speaks again."""
LONG_REST_S, LONG_RESTS = (2.0, 5.0), 0.08
"""The same where the user thinks for a while, and how often."""
REMARKED_S = 0.8
"""So much more silence after a remark, which nobody answers."""
STOP_S = (0.16, 0.26)
"""The model falls silent so long after the user cut in."""
DISTURBED = (0.2, 0.7)
"""Where in the answer the user speaks, as a share of it."""

LISTS = (
    (
        ("one", "two", "three", "four", "five"),
        ("Please count to five.", "Count from one to five."),
    ),
    (
        ("six", "seven", "eight", "nine", "ten"),
        ("Please count from six to ten.", "Count on from six."),
    ),
    (
        ("five", "four", "three", "two", "one"),
        ("Please count down from five.", "Count backwards from five."),
    ),
    (
        ("ten", "twenty", "thirty", "forty", "fifty"),
        ("Please count to fifty in tens.", "Count in tens."),
    ),
    (
        ("monday", "tuesday", "wednesday", "thursday", "friday"),
        ("Please name the days of the week.", "Which days do people work?"),
    ),
    (
        ("january", "february", "march", "april", "may"),
        ("Please name the first five months.", "How does the year begin?"),
    ),
    (
        ("alpha", "bravo", "charlie", "delta", "echo"),
        ("Please say the alphabet.", "How does the alphabet begin?"),
    ),
)
"""Requests with long answers: the words of the answer, and ways to ask."""
REMARKS = (
    "It is raining outside.",
    "I am talking to my brother.",
    "Let me think about that.",
    "Just a moment, I have a visitor.",
    "The coffee is ready, I believe.",
    "I have never been good at this.",
    "My sister would know all of these.",
    "We had a lovely time in the garden.",
)
"""What nobody has to answer."""
ACKNOWLEDGEMENTS = ("Mm-hmm.", "Uh-huh.", "Okay.", "Yes.", "I see.", "All right.")
"""Back-channels: the user listens on."""
STOPS = ("Stop, please.", "Thank you, that is enough.", "Wait a moment.")
"""What a user says who wants silence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What the user says, and what follows from it."""

    text: str
    answer: tuple[str, ...] = ()
    """Recordings of which the answer is made; none where nobody has to answer."""
    rest_s: float
    """Silence before it; without meaning where it cuts into an answer."""
    pause_s: float = 0.0
    """The user pauses so long within the sentence; 0 for not at all."""
    pause_at: float = 0.5
    """After which share of the words."""
    gap_s: float = 0.0
    """From its end to the answer."""
    acknowledgement: str | None = None
    """The back-channel that the user gives to the answer."""
    disturbed_at: float = 0.5
    """The share of the answer after which the user gives it, or cuts in."""
    stop_s: float | None = None
    """The next turn cuts into the answer, and the model falls silent so much later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """A user talks to the model for a while."""

    id: str
    voice: Voice
    """The user's."""
    split: str
    turns: tuple[Turn, ...]
    noise_seed: str
    """Draws the noise that is always there."""
    room_seed: str | None = None
    """Draws the user's room and microphone; None for the plain voice."""

    @property
    def origin(self) -> str:
        """What errors call it."""
        return f"dialogue {self.id!r}"


def plan_dialogues(
    voice: Voice, split: str, world: Sequence[Question], renditions: int, seed: int
) -> Iterator[Dialogue]:
    """All dialogues of one user, who asks questions ``renditions`` times.

    Args:
        voice: The user's.
        split: That the voice belongs to; training hears it in rooms.
        world: The questions.
        renditions: Each time at another place and in another wording.
        seed: Of all that is drawn.
    """
    draw = random.Random(f"{seed} {voice.speaker} dialogues")
    most = len(world) if split == "train" else min(HELD_OUT, len(world))
    asked: list[tuple[str, str]] = []
    for rendition in range(renditions):
        for question in draw.sample(list(world), most):
            first = random.Random(f"{seed} {voice.speaker} {question.name}").randrange(99)
            wording = question.wordings[(first + rendition) % len(question.wordings)]
            asked.append((wording, question.answer))
    for number, start in enumerate(range(0, len(asked), QUESTIONS_EACH)):
        id = f"{voice.speaker}.{number:04d}"
        yield Dialogue(
            id=id,
            voice=voice,
            split=split,
            turns=tuple(_turns(asked[start : start + QUESTIONS_EACH], draw)),
            noise_seed=f"{seed} {id} noise",
            room_seed=f"{seed} {id} room" if split == "train" and draw.random() < 0.8 else None,
        )


def _turns(asked: Sequence[tuple[str, str]], draw: random.Random) -> Iterator[Turn]:
    extra = draw.randint(0, len(asked)) if draw.random() < EXTRA else -1
    for place, (wording, answer) in enumerate(asked):
        if place == extra:
            yield from _extra(draw, followed=True)
        yield _turn(draw, wording, (answer,))
    if extra == len(asked):
        yield from _extra(draw, followed=False)


def _extra(draw: random.Random, *, followed: bool) -> Iterator[Turn]:
    """A list or a remark; ``followed`` by a question, which may then cut in."""
    if draw.random() >= LIST:
        yield _turn(draw, draw.choice(REMARKS), ())
        return
    words, wordings = draw.choice(LISTS)
    how = draw.random()
    cuts_in = how >= UNDISTURBED + ACKNOWLEDGED
    stops = cuts_in and (not followed or draw.random() < STOPPED)
    acknowledges = UNDISTURBED <= how < UNDISTURBED + ACKNOWLEDGED
    yield _turn(
        draw,
        draw.choice(wordings),
        words,
        acknowledgement=draw.choice(ACKNOWLEDGEMENTS) if acknowledges else None,
        stop_s=draw.uniform(*STOP_S) if cuts_in else None,
    )
    if stops:
        yield _turn(draw, draw.choice(STOPS), (), pauses=0.0)


def _turn(
    draw: random.Random,
    text: str,
    answer: tuple[str, ...],
    *,
    acknowledgement: str | None = None,
    stop_s: float | None = None,
    pauses: float = PAUSES,
) -> Turn:
    thinks = draw.random() < LONG_RESTS
    gap_s = draw.gauss(GAP_S, GAP_DEVIATION_S)
    return Turn(
        text=text,
        answer=answer,
        rest_s=draw.uniform(*(LONG_REST_S if thinks else REST_S)),
        pause_s=draw.uniform(*PAUSE_S) if draw.random() < pauses else 0.0,
        pause_at=draw.uniform(0.2, 0.9),
        gap_s=min(max(gap_s, GAP_LIMITS_S[0]), GAP_LIMITS_S[1]) if answer else 0.0,
        acknowledgement=acknowledgement,
        disturbed_at=draw.uniform(*DISTURBED),
        stop_s=stop_s,
    )
