"""The loop that runs a hub: takes what came, steps the model, waits no longer than it may."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from speechlm.bundle import SpeechLM
from speechlm.config import SamplingConfig
from speechlm.dialogue import oneshot
from speechlm.dialogue.conversations import (
    PROBE,
    Close,
    Done,
    Down,
    Heard,
    Open,
    Opened,
    Speak,
    Up,
    WriteDown,
)
from speechlm.dialogue.hub import Hub
from speechlm.dialogue.messages import Command, Commit, Event, Hear, Respond, Samples
from speechlm.dialogue.settings import SessionSettings, TurnSettings
from speechlm.errors import SpeechLMError
from speechlm.generation.generate import generate_stream

LOG = logging.getLogger(__name__)
MOST_SAMPLES = 4800
"""That one session hears before others have their turn: 0.2 s at 24 kHz."""
IDLE_S = 0.5
"""The loop looks up at least so often."""

SMALL_LM = 20_000_000
"""Parameters below which a second thread costs more than it brings."""

Receive = Callable[[float], "Sequence[Down] | None"]
"""Waits at most so many seconds for messages; None: it is over."""


@torch.no_grad()  # keeping books for gradients costs a third of a vocoder's small steps
def run_hub(
    model: SpeechLM,
    receive: Receive,
    send: Callable[[Up], None],
    flush: Callable[[], None] = lambda: None,
    *,
    max_sessions: int,
) -> None:
    """Run sessions until ``receive`` says that it is over.

    Args:
        model: The bundle.
        receive: Gives what came.
        send: Takes what is to be told.
        flush: Is called before the model runs: what was sent need not wait for it.
        max_sessions: At once.
    """
    hub = Hub(model, lambda name, event: send((name, event)), max_sessions=max_sessions + 1)
    waiting: dict[str, deque[Command]] = {}
    works: dict[str, Iterator[Samples | str]] = {}
    while True:
        wait_s = 0.0 if works or waiting else hub.wait_s
        messages = receive(IDLE_S if wait_s is None else min(wait_s, IDLE_S))
        if messages is None:
            return
        for name, message in messages:
            if name == PROBE:
                send((PROBE, Opened(error=_try_probe(hub))))
            elif isinstance(message, Open):
                send((name, Opened(error=_try_open(hub, name, message.settings))))
            elif isinstance(message, Close):
                works.pop(name, None)
                waiting.pop(name, None)
                hub.close(name)
            elif isinstance(message, Speak):
                works[name] = oneshot.speak(model, message.request)
            elif isinstance(message, WriteDown):
                works[name] = _writing(model, message)
            else:
                waiting.setdefault(name, deque()).append(message)
        for name, commands in list(waiting.items()):
            num_samples = _hand_over(hub, name, commands)
            if num_samples:
                send((name, Heard(num_samples=num_samples)))
            if not commands:
                del waiting[name]
        flush()
        hub.step()
        # A piece of each at a time: conversations go on beside them.
        for name, work in list(works.items()):
            done = _next_piece(work)
            if done is not None:
                send((name, done))
                if done.piece is None:
                    del works[name]


def _hand_over(hub: Hub, name: str, commands: deque[Command]) -> int:
    """Give a session its commands in order, up to :data:`MOST_SAMPLES`; so many it has heard."""
    heard = 0
    while commands and heard < MOST_SAMPLES:
        command = commands.popleft()
        if isinstance(command, Hear):
            left = MOST_SAMPLES - heard
            heard += len(command.samples[:left])
            if len(command.samples) > left:
                commands.appendleft(Hear(samples=command.samples[left:]))
            command = Hear(samples=command.samples[:left])
        hub.handle(name, command)
    return heard


def _writing(model: SpeechLM, message: WriteDown) -> Iterator[Samples | str]:
    """Empty pieces while it goes on, then the text."""
    writing = oneshot.transcribe(model, message.samples, message.sample_rate)
    while True:
        try:
            next(writing)
        except StopIteration as end:
            yield str(end.value)
            return
        yield ""


def _next_piece(work: Iterator[Samples | str]) -> Done | None:
    """What a piece of work gave; None for nothing to tell."""
    try:
        piece = next(work, None)
    except Exception as error:
        return Done(error=_told(error))
    return None if isinstance(piece, str) and not piece else Done(piece=piece)


def choose_threads(model: SpeechLM, threads: int = 0) -> None:
    """Compute with so many threads; 0: one where the LM is small, as many as there are cores
    where it is not."""
    small = sum(weight.numel() for weight in model.lm.decoder.parameters()) < SMALL_LM
    if threads or small:
        torch.set_num_threads(threads or 1)


@torch.no_grad()
def warm_up(model: SpeechLM) -> None:
    """Hear and answer once: the first caller shall not wait for what is made at first use."""
    events: list[Event] = []
    hub = Hub(model, lambda name, event: events.append(event), max_sessions=1)
    settings = SessionSettings(input_rate=16_000, turns=None, max_answer_s=1.0, lead_s=0)
    if hub.duplex:
        settings = SessionSettings(input_rate=16_000, turns=None, continuous=True)
    hub.open(PROBE, settings)
    noise = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    hub.handle(PROBE, Hear(samples=noise.numpy()))
    if not hub.duplex:
        hub.handle(PROBE, Commit())
        hub.handle(PROBE, Respond(response_id=PROBE))
    while hub.step():
        pass
    hub.close(PROBE)
    # What listens for the ends of turns is made at first use too.
    hub.open(PROBE, SessionSettings(turns=None if hub.duplex else TurnSettings()))
    hub.close(PROBE)


def _try_open(hub: Hub, name: str, settings: SessionSettings) -> str | None:
    try:
        hub.open(name, settings)
    except Exception as error:
        return _told(error)
    return None


def _try_probe(hub: Hub) -> str | None:
    """One real frame through the model, beside whatever else it is doing."""
    lm = hub.model.lm
    codes = torch.zeros(hub.model.tokenizer.num_codebooks, 1, dtype=torch.int64)
    try:
        fields = {"self": codes, "other": codes} if hub.duplex else {"question": codes}
        prompt = lm.layout.prompt(lm.vocabulary, fields)
        sampling = SamplingConfig(max_units=1)
        next(generate_stream(lm, prompt, sampling, 0, weights=hub.model.weights))
    except Exception as error:
        return _told(error)
    return None


def _told(error: Exception) -> str:
    """One line for whoever asked; what broke beside what they asked for is logged."""
    if isinstance(error, SpeechLMError):
        return str(error)
    LOG.error("the hub could not do what it was asked for", exc_info=error)
    return f"{type(error).__name__}: {error}"
