"""One caller: asks, listens, breaks in, and notes when what came over the wire."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from speechlm.dialogue.load.questions import RATE, Question

FRAME_S = 0.02
"""A microphone's sound is sent in pieces of this length, silence too."""
FRAME = round(FRAME_S * RATE)
PAUSE_S = (0.3, 1.0)
"""From the end of an answer to the next question, drawn anew each time."""
ANSWER_S = 20.0
"""A question that is not answered within this time stays unanswered."""


@dataclass(kw_only=True, slots=True, eq=False)
class Answer:
    """What came of one response; times are seconds of the monotonic clock."""

    deltas: list[tuple[float, int]] = field(default_factory=list)
    """When each piece of sound came, and its samples."""
    sound: list[bytes] = field(default_factory=list)
    """The pieces, 16 bits at :data:`RATE`."""
    status: str | None = None
    """How it ended."""
    figures: dict[str, Any] | None = None
    """What the server measured of it."""

    @property
    def num_samples(self) -> int:
        return sum(count for _, count in self.deltas)

    @property
    def heard_at(self) -> float | None:
        """When a player is through with it."""
        return self.deltas[0][0] + self.num_samples / RATE if self.deltas else None


@dataclass(kw_only=True, slots=True, eq=False)
class Turn:
    """One question and what became of it; times as in :class:`Answer`."""

    caller: int
    question: Question
    onset_at: float | None = None
    """The first word's frame was sent."""
    said_at: float | None = None
    """The last word's frame was sent."""
    stopped_at: float | None = None
    """The server said that speech had stopped; of several times, the last before the answer."""
    answer: Answer | None = None
    breaks_in: bool = False
    """The next question is asked as soon as this one's answer begins."""
    cut_onset_at: float | None = None
    """The first word of what breaks in was sent."""
    cut_noticed_at: float | None = None
    """The server said that speech had started, of what breaks in."""
    num_responses: int = 0
    sent: bool = False
    """Whether all of the question was sent."""


@dataclass(kw_only=True, slots=True, eq=False)
class Call:
    """What one caller experienced."""

    turns: list[Turn] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    """Codes of error events, of how the connection was lost, and ``unanswered``."""
    refused: str | None = None
    """Why it was not let in."""
    late_s: float = 0.0
    """How late a frame was sent at worst: the caller's own fault, not the server's."""


class Caller:
    """Holds one conversation over one connection."""

    def __init__(
        self, number: int, questions: Sequence[Question], *, breaks_in: float, seed: int
    ) -> None:
        """
        Args:
            number: Of this caller.
            questions: What it asks, in order.
            breaks_in: Share of answers that it interrupts by the next question.
            seed: Of its pauses and interruptions.
        """
        self.call = Call()
        self._number = number
        self._questions = questions
        self._breaks_in = breaks_in
        self._draw = random.Random(f"{seed} {number}")
        self._frames: deque[tuple[str, Turn | None, str | None]] = deque()
        """Frames to send, with the turn whose onset or end they are."""
        self._turn: Turn | None = None
        self._answers: dict[str, Answer] = {}
        """By response."""
        self._items: dict[str, Answer] = {}
        """By item; those that may still be heard."""
        self._speaking = False
        """Whether the server hears speech."""
        self._news = asyncio.Event()

    async def run(
        self, url: str, *, token: str | None = None, turn_detection: dict[str, Any] | None = None
    ) -> Call:
        """Connect and ask; gives what was experienced, whatever went wrong."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            async with connect(
                url, additional_headers=headers, max_size=None, compression=None
            ) as socket:
                await self._converse(socket, turn_detection)
        except InvalidHandshake as error:
            response = getattr(error, "response", None)
            self.call.refused = f"http_{response.status_code}" if response else "handshake"
        except OSError:
            self.call.refused = "unreachable"
        except ConnectionClosed as closed:
            if self.call.refused is None:
                self.call.errors[f"closed_{closed.rcvd.code if closed.rcvd else 'abruptly'}"] += 1
        return self.call

    async def _converse(
        self, socket: ClientConnection, turn_detection: dict[str, Any] | None
    ) -> None:
        first = json.loads(await socket.recv())
        if first["type"] == "error":
            self.call.refused = first["error"].get("code") or "error"
            return
        session: dict[str, Any] = {"type": "realtime", "x_ext": True}
        if turn_detection is not None:
            session["audio"] = {"input": {"turn_detection": turn_detection}}
        await _send(socket, "session.update", session=session)
        parts = (self._speak(socket), self._listen(socket), self._ask())
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- the three tasks ---

    async def _speak(self, socket: ClientConnection) -> None:
        """A frame at a time, as a microphone gives them: also where there is nothing to say."""
        silence = _frame(bytes(2 * FRAME))
        start = time.monotonic()
        number = 0
        while True:
            number += 1
            due = start + number * FRAME_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.call.late_s = max(self.call.late_s, time.monotonic() - due)
            text, turn, mark = self._frames.popleft() if self._frames else (silence, None, None)
            await socket.send(text)
            if turn is not None:
                self._sent(turn, mark)

    def _sent(self, turn: Turn, mark: str | None) -> None:
        now = time.monotonic()
        if mark == "onset":
            turn.onset_at = now
            cut = self.call.turns[-2] if len(self.call.turns) > 1 else None
            if cut is not None and cut.breaks_in:
                cut.cut_onset_at = now
        elif mark == "said":
            turn.said_at = now
        else:
            turn.sent = True
            self._news.set()

    async def _ask(self) -> None:
        await asyncio.sleep(self._draw.uniform(0.1, 1.5))  # callers do not come in step
        for index, question in enumerate(self._questions):
            last = index == len(self._questions) - 1
            breaks_in = not last and self._draw.random() < self._breaks_in
            turn = Turn(caller=self._number, question=question, breaks_in=breaks_in)
            self._turn = turn
            self.call.turns.append(turn)
            self._frames.extend(_frames(question, turn))
            try:
                async with asyncio.timeout(len(question.samples) / RATE + ANSWER_S):
                    while not self._may_go_on(turn):
                        self._news.clear()
                        await self._news.wait()
            except TimeoutError:
                self.call.errors["unanswered"] += 1
                continue
            answer = turn.answer
            if not breaks_in and answer is not None and answer.heard_at is not None:
                await asyncio.sleep(max(0.0, answer.heard_at - time.monotonic()))
                await asyncio.sleep(self._draw.uniform(*PAUSE_S))

    def _may_go_on(self, turn: Turn) -> bool:
        """Whether the answer is over; of one to be broken in on, whether it has begun."""
        answer = turn.answer
        if not turn.sent or answer is None or self._speaking:
            return False
        return answer.status is not None or (turn.breaks_in and bool(answer.deltas))

    async def _listen(self, socket: ClientConnection) -> None:
        async for text in socket:
            now = time.monotonic()
            event = json.loads(text)
            kind = event["type"]
            if kind == "response.output_audio.delta":
                if (answer := self._items.get(event["item_id"])) is not None:
                    sound = base64.b64decode(event["delta"])
                    answer.deltas.append((now, len(sound) // 2))
                    answer.sound.append(sound)
            elif kind == "input_audio_buffer.speech_started":
                self._speaking = True
                await self._cut(socket, now)
            elif kind == "input_audio_buffer.speech_stopped":
                self._speaking = False
                if self._turn is not None:
                    self._turn.stopped_at = now
            elif kind == "response.created":
                self._begin(event["response"]["id"])
            elif kind == "response.output_item.added":
                self._items[event["item"]["id"]] = self._answers[event["response_id"]]
            elif kind == "response.done":
                self._answers[event["response"]["id"]].status = event["response"]["status"]
            elif kind == "x.turn_measured":
                self._answers[event["figures"]["response_id"]].figures = event["figures"]
            elif kind == "error":
                self.call.errors[event["error"].get("code") or "error"] += 1
            else:
                continue
            self._news.set()

    # --- helpers ---

    def _begin(self, response_id: str) -> None:
        answer = self._answers[response_id] = Answer()
        if self._turn is not None:
            self._turn.answer = answer
            self._turn.num_responses += 1

    async def _cut(self, socket: ClientConnection, now: float) -> None:
        """Speech has started: an answer that is being played stops, and the server is told how
        much of it was heard, as players do."""
        for item_id, answer in self._items.items():
            heard_at = answer.heard_at
            if heard_at is not None and now < heard_at:
                played_ms = int(1000 * (now - answer.deltas[0][0]))
                with suppress(ConnectionClosed):
                    await _send(
                        socket,
                        "conversation.item.truncate",
                        item_id=item_id,
                        content_index=0,
                        audio_end_ms=played_ms,
                    )
        self._items = {
            item_id: answer for item_id, answer in self._items.items() if answer.status is None
        }
        cut = self.call.turns[-2] if len(self.call.turns) > 1 else None
        if cut is not None and cut.breaks_in and cut.cut_noticed_at is None:
            cut.cut_noticed_at = now


async def _send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


def _frame(sound: bytes) -> str:
    return json.dumps(
        {"type": "input_audio_buffer.append", "audio": base64.b64encode(sound).decode()}
    )


def _frames(question: Question, turn: Turn) -> list[tuple[str, Turn | None, str | None]]:
    """A question's frames; those with its first and last word and the last one are marked."""
    count = -(-len(question.samples) // FRAME)
    wave = torch.nn.functional.pad(question.samples, (0, count * FRAME - len(question.samples)))
    sound = (wave.clamp(-1, 1) * 32767).short().numpy().astype("<i2").tobytes()
    onset, said = (min(count - 1, at // FRAME) for at in question.speech)
    marks = {count: "sent", said: "said", onset: "onset"}
    frames: list[tuple[str, Turn | None, str | None]] = []
    for at in range(count):
        mark = marks.get(at)
        text = _frame(sound[2 * at * FRAME : 2 * (at + 1) * FRAME])
        frames.append((text, turn if mark else None, mark))
    frames.append((_frame(bytes(2 * FRAME)), turn, "sent"))
    return frames
