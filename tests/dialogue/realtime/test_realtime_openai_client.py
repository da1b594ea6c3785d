"""OpenAI's own client, unchanged, holds a conversation with a bundle."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("websockets")
pytest.importorskip("silero_vad")

import openai
import torch
from realtime_judges import judge
from realtime_server import Served, serving
from small_bundle import question

from speechlm import SpeechLM
from speechlm.audio import load_audio
from speechlm.dialogue.local import LocalService

JSON = dict[str, Any]
RATE = 24_000
ANSWER = {"max_output_tokens": 16}
"""The bundle is untrained and never ends by itself."""


@pytest.fixture(scope="module")
def model(bundle_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(bundle_folder)


def pieces(seconds_of_silence: float) -> list[str]:
    """A spoken question, and silence, in pieces of 40 ms as base64."""
    wave = load_audio(question(), RATE)
    silence = torch.zeros(round(seconds_of_silence * RATE))
    pcm = (torch.cat([silence[:4800], wave, silence]).clamp(-1, 1) * 32767).short().numpy()
    return [
        base64.b64encode(pcm[at : at + 960].tobytes()).decode() for at in range(0, len(pcm), 960)
    ]


class Caller:
    """What a client does and gets; each event is judged."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.events: list[JSON] = []

    async def hear(self) -> JSON:
        raw = await asyncio.wait_for(self.connection.recv_bytes(), 20)
        event: JSON = json.loads(raw)
        # The client makes its own object of it too.
        assert self.connection.parse_event(raw).type == event["type"]
        judge(event)
        self.events.append(event)
        return event

    async def until(self, kind: str) -> JSON:
        while True:
            event = await self.hear()
            assert event["type"] != "error", event
            if event["type"] == kind:
                return event

    async def ask(self, silence_s: float = 0.6) -> None:
        for piece in pieces(silence_s):
            await self.connection.input_audio_buffer.append(audio=piece)


def client_of(served: Served) -> Any:
    address = served.url.removesuffix("/realtime")
    return openai.AsyncOpenAI(api_key="K", websocket_base_url=address)


async def five_questions(model: SpeechLM) -> None:
    async with (
        LocalService(model) as service,
        serving(service) as served,
        client_of(served) as client,
        client.realtime.connect(model="gpt-realtime") as connection,
    ):
        caller = Caller(connection)
        await caller.until("session.created")
        answers = []
        for number in range(5):
            # The one that is interrupted must still be going on then.
            longest: Any = "inf" if number == 2 else 10
            session = {"type": "realtime", "max_output_tokens": longest}
            await connection.session.update(session=session)
            await caller.until("session.updated")
            await caller.ask()
            delta = await caller.until("response.output_audio.delta")
            if number == 2:
                await connection.response.cancel()
            response = (await caller.until("response.done"))["response"]
            answers.append(response["status"])
            if number == 2:
                assert response["status_details"]["reason"] == "client_cancelled"
                await connection.conversation.item.truncate(
                    item_id=delta["item_id"], content_index=0, audio_end_ms=20
                )
                truncated = await caller.until("conversation.item.truncated")
                assert truncated["audio_end_ms"] == 20
        # The bundle knows no end: all but the interrupted one are cut at their length.
        assert answers == ["incomplete"] * 2 + ["cancelled"] + ["incomplete"] * 2
        added = [one for one in caller.events if one["type"] == "conversation.item.added"]
        before = [None, *(one["item"]["id"] for one in added)]
        assert [one["previous_item_id"] for one in added] == before[:-1]
        assert [one["item"]["role"] for one in added] == ["user", "assistant"] * 5
        async with asyncio.timeout(10):
            while len(served.counts.turns) < 5:  # the figures come after the answer's end
                await asyncio.sleep(0.005)
        assert service.num_sessions == 1
    assert service.num_sessions == 0


def test_five_spoken_questions_one_of_them_interrupted_and_truncated(model: SpeechLM) -> None:
    asyncio.run(five_questions(model))


async def barge_in(model: SpeechLM) -> None:
    async with (
        LocalService(model) as service,
        serving(service) as served,
        client_of(served) as client,
        client.realtime.connect(model="any") as connection,
    ):
        caller = Caller(connection)
        await caller.ask()
        answer = await caller.until("response.output_audio.delta")
        said = len(caller.events)
        for _ in range(3):  # one word alone could be a back-channel
            await caller.ask(0.0)
        await caller.until("input_audio_buffer.speech_started")
        done = (await caller.until("response.done"))["response"]
        assert done["id"] == answer["response_id"]
        assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        kinds = [event["type"] for event in caller.events[said:]]
        after = kinds[kinds.index("input_audio_buffer.speech_started") + 1 :]
        assert after == [
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ]
        # What was said over the answer is answered.
        await caller.ask()
        await caller.until("input_audio_buffer.committed")
        await caller.until("response.output_audio.delta")


def test_speaking_over_an_answer_ends_it(model: SpeechLM) -> None:
    asyncio.run(barge_in(model))


async def push_to_talk(model: SpeechLM) -> None:
    async with (
        LocalService(model) as service,
        serving(service) as served,
        client_of(served) as client,
        client.realtime.connect(model="any") as connection,
    ):
        caller = Caller(connection)
        await caller.until("session.created")
        manual = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        await connection.session.update(session=manual)
        await caller.until("session.updated")
        await connection.input_audio_buffer.commit()
        assert (await caller.hear())["error"]["code"] == "input_audio_buffer_commit_empty"
        await connection.response.cancel()
        assert (await caller.hear())["error"]["code"] == "response_cancel_not_active"
        await caller.ask(0.0)
        await connection.input_audio_buffer.clear()
        await caller.until("input_audio_buffer.cleared")
        await caller.ask(0.0)
        await connection.input_audio_buffer.commit()
        committed = await caller.until("input_audio_buffer.committed")
        metadata = {"client_event_id": "7"}
        await connection.response.create(response={**ANSWER, "metadata": metadata})
        await connection.response.create()
        created = await caller.until("response.created")
        assert created["response"]["metadata"] == metadata
        busy = None
        while busy is None:
            event = await caller.hear()
            busy = event["error"] if event["type"] == "error" else None
        assert busy["code"] == "conversation_already_has_active_response"
        done = await caller.until("response.done")
        assert done["response"]["usage"]["output_tokens"] == 16
        await connection.conversation.item.delete(item_id=committed["item_id"])
        await caller.until("conversation.item.deleted")


def test_push_to_talk_has_the_codes_that_clients_know(model: SpeechLM) -> None:
    asyncio.run(push_to_talk(model))


async def storm(model: SpeechLM) -> None:
    async with (
        LocalService(model) as service,
        serving(service) as served,
        client_of(served) as client,
        client.realtime.connect(model="any") as connection,
    ):
        caller = Caller(connection)
        manual = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        await connection.session.update(session=manual)
        await caller.ask(0.0)
        for _ in range(8):
            await connection.input_audio_buffer.commit()
            await connection.response.create()
            await connection.response.cancel()
            await connection.conversation.item.truncate(
                item_id="none", content_index=0, audio_end_ms=0
            )
            await caller.ask(0.0)
        await connection.input_audio_buffer.commit()
        await connection.response.create(response={**ANSWER, "metadata": {"last": "yes"}})
        while True:
            event = await caller.hear()
            if event["type"] == "response.done" and event["response"]["metadata"]:
                break
        created = [one for one in caller.events if one["type"] == "response.created"]
        done = [one["response"] for one in caller.events if one["type"] == "response.done"]
        errors = [one["error"]["code"] for one in caller.events if one["type"] == "error"]
        assert [one["response"]["id"] for one in created] == [one["id"] for one in done]
        assert done[-1]["status"] == "incomplete"
        # Each cancel and each truncation was answered, with an end or with an error.
        cancelled = sum(one["status"] == "cancelled" for one in done)
        assert cancelled + errors.count("response_cancel_not_active") == 8
        assert errors.count("item_truncate_invalid_item_id") == 8
        assert len(done) == 9


def test_a_storm_of_interruptions_is_answered_and_passes(model: SpeechLM) -> None:
    asyncio.run(storm(model))


async def answer_beside(model: SpeechLM, others: int) -> bytes:
    """The sound of a seeded answer while others talk too."""

    async def call(address: Served) -> bytes:
        async with (
            client_of(address) as client,
            client.realtime.connect(model="any") as connection,
        ):
            caller = Caller(connection)
            await caller.ask()
            await caller.until("response.output_audio.done")
            return b"".join(
                base64.b64decode(one["delta"]) for one in caller.events if "delta" in one
            )

    async with LocalService(model) as service, serving(service, max_answer_s=0.4) as served:
        sounds = await asyncio.gather(*(call(served) for _ in range(1 + others)))
        assert len(set(sounds)) == 1
        return sounds[0]


def test_an_answer_is_the_same_alone_and_among_others(model: SpeechLM) -> None:
    alone = asyncio.run(answer_beside(model, 0))
    assert len(alone) > 2 * 0.3 * RATE
    assert asyncio.run(answer_beside(model, 3)) == alone
