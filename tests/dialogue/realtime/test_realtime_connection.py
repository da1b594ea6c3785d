"""A socket and a session, joined over a real server: limits, faults, and nothing left behind."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("websockets")

from realtime_judges import judge_all
from realtime_server import Client, serving, talking
from tone_service import ToneService
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from speechlm.dialogue.messages import Cancel, Commit, Hear, Truncate
from speechlm.dialogue.server.realtime.conversation import Conversation

QUIET = base64.b64encode(bytes(4800)).decode()
"""0.1 s."""


async def ask(client: Client) -> None:
    await client.say("input_audio_buffer.append", audio=QUIET)
    await client.say("input_audio_buffer.commit")
    await client.say("response.create")


def test_a_turn_goes_over_the_wire_and_the_session_ends_with_it() -> None:
    async def run() -> None:
        service = ToneService()
        async with serving(service) as served:
            async with talking(served) as client:
                await ask(client)
                await client.until("response.done")
                judge_all(client.events)
                sound = b"".join(
                    base64.b64decode(event["delta"])
                    for event in client.events
                    if event["type"] == "response.output_audio.delta"
                )
                assert len(sound) == 2 * 24_000 * 0.5
                assert service.num_sessions == 1
            await served.idle()
            assert service.num_sessions == 0

    asyncio.run(run())


def test_a_turn_in_the_beta_dialect() -> None:
    async def run() -> None:
        async with serving(ToneService(), "beta") as served, talking(served) as client:
            await client.say("session.update", session={"turn_detection": None, "voice": "alloy"})
            assert (await client.until("session.updated"))["session"]["turn_detection"] is None
            await ask(client)
            delta = await client.until("response.audio.delta")
            assert len(base64.b64decode(delta["delta"])) == 2 * 2400
            done = await client.until("response.done")
            assert done["response"]["modalities"] == ["text", "audio"]
            kinds = {event["type"] for event in client.events}
            assert "conversation.item.created" in kinds
            assert not {"conversation.item.added", "conversation.item.done"} & kinds

    asyncio.run(run())


def test_the_subprotocol_is_answered_where_it_was_offered() -> None:
    async def run() -> None:
        async with serving(ToneService()) as served:
            async with talking(
                served, subprotocols=["realtime", "openai-insecure-api-key.K"]
            ) as client:
                assert client.socket.subprotocol == "realtime"
            async with talking(served) as client:
                assert client.socket.subprotocol is None

    asyncio.run(run())


def test_what_cannot_be_used_is_answered_and_the_session_goes_on() -> None:
    async def run() -> None:
        async with serving(ToneService()) as served, talking(served) as client:
            await client.socket.send("{")
            await client.socket.send(b"\x00\x01")
            await client.say("no.such.event", event_id="mine")
            await client.say("input_audio_buffer.append", audio="!")
            codes = [(await client.until("error"))["error"]["code"] for _ in range(4)]
            assert codes == ["invalid_json", "invalid_frame", "invalid_value", "invalid_value"]
            assert client.events[3]["error"]["event_id"] == "mine"
            await ask(client)
            await client.until("response.done")
            judge_all(client.events)
            assert served.counts.errors["invalid_value"] == 2

    asyncio.run(run())


@pytest.mark.parametrize("dialect", ["ga", "beta"])
def test_where_no_session_is_free_it_is_said_at_once(dialect: Any) -> None:
    async def run() -> None:
        service = ToneService(max_sessions=1)
        async with serving(service, dialect) as served, talking(served):
            async with connect(served.url) as socket:
                event = json.loads(await socket.recv())
                judge_all([event])
                assert event["error"]["type"] == "session_limit_reached"
                assert event["error"]["code"] == "session_limit_reached"
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
                assert socket.close_code == 1008
            assert service.num_sessions == 1
            assert served.counts.errors == {"session_limit_reached": 1}

    asyncio.run(run())


def test_a_session_that_cannot_begin_is_told() -> None:
    async def run() -> None:
        async with serving(ToneService(name="broken")) as served:
            async with connect(served.url) as socket:
                event = json.loads(await socket.recv())
                judge_all([event])
                assert event["error"]["code"] == "session_failed"
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
                assert socket.close_code == 1011
            await served.idle()

    asyncio.run(run())


def test_who_hangs_up_while_waiting_for_a_session_gets_none() -> None:
    async def run() -> None:
        service = ToneService()
        service.free.clear()
        async with serving(service) as served:
            async with connect(served.url) as socket:
                socket.transport.abort()
            await served.idle()
            assert service.opened == 0
            async with connect(served.url) as socket:
                await socket.send('{"type": "input_audio_buffer.commit"}')
                service.free.set()
                kinds = [json.loads(await socket.recv())["type"] for _ in range(2)]
            assert kinds == ["session.created", "input_audio_buffer.committed"]
            await served.idle()
            assert service.num_sessions == 0

    asyncio.run(run())


def test_a_cancelled_answer_is_off_the_wire_at_once() -> None:
    async def run() -> None:
        # More than the buffers of the machine hold: most of it waits in the server.
        service = ToneService(answer_s=300, ends=False)
        async with serving(service, max_output_bytes=2**26) as served, talking(served) as client:
            await ask(client)
            first = await client.until("response.output_audio.delta")
            (session,) = service.open_sessions
            session.interrupt()
            done = await client.until("response.done")
            assert done["response"]["status"] == "cancelled"
            deltas = [one["delta"] for one in client.events if "delta" in one]
            judge_all([event for event in client.events if "delta" not in event])
            sent = sum(len(base64.b64decode(delta)) for delta in deltas)
            assert sent < 2 * 24_000 * 250
            # What was not sent was not heard, and the session knows.
            (cut,) = [one for one in session.commands if isinstance(one, Truncate)]
            assert cut == Truncate(item_id=first["item_id"], heard_s=sent / 48_000)

    asyncio.run(run())


def test_clearing_the_output_drops_what_waits_and_the_answer_goes_on() -> None:
    async def run() -> None:
        service = ToneService(answer_s=300, ends=False)
        async with serving(service, max_output_bytes=2**26) as served, talking(served) as client:
            await ask(client)
            await client.until("response.output_audio.delta")
            await client.say("output_audio_buffer.clear")
            await client.say("no.such.event")
            await client.until("error")
            deltas = [one for one in client.events if "delta" in one]
            assert len(deltas) < 2500
            (session,) = service.open_sessions
            assert not any(isinstance(one, Truncate) for one in session.commands)
            session.sound()
            session.end("completed")
            done = await client.until("response.done")
            assert done["response"]["status"] == "completed"
            assert "delta" in client.events[-7]

    asyncio.run(run())


def test_a_slow_reader_is_closed_and_leaves_nothing() -> None:
    async def run() -> None:
        service = ToneService(answer_s=300, ends=False)
        async with serving(service, max_output_bytes=2**20) as served:
            async with talking(served) as client:
                await ask(client)
                while service.num_sessions:
                    await asyncio.sleep(0.01)
                with pytest.raises(ConnectionClosed):
                    await client.until("no such event")
                assert client.socket.close_code == 1013
            await served.idle()

    asyncio.run(run())


def test_a_flood_of_sound_loses_its_oldest_and_is_counted() -> None:
    async def run() -> None:
        service = ToneService()
        async with serving(service, max_backlog_s=4.0) as served, talking(served) as client:
            (session,) = service.open_sessions
            session.backlog_s = 2.0
            for _ in range(50):
                await client.say("input_audio_buffer.append", audio=QUIET)
            # Cancelling does not wait behind sound.
            await client.say("response.cancel")
            await client.until("error")
            assert session.commands == [Cancel()]
            session.backlog_s = 0.0
            await client.say("input_audio_buffer.commit")
            committed = await client.until("input_audio_buffer.committed")
            assert committed["x_dropped_ms"] == 3000
            assert served.counts.dropped_s == pytest.approx(3.0)
            heard = [len(one.samples) for one in session.commands if isinstance(one, Hear)]
            assert sum(heard) == 2 * 24_000
            assert session.commands[-1] == Commit()

    asyncio.run(run())


def test_a_frame_that_is_too_large_closes_with_1009() -> None:
    async def run() -> None:
        service = ToneService()
        async with serving(service, max_frame_bytes=10_000) as served:
            async with talking(served) as client:
                await client.say("input_audio_buffer.append", audio="A" * 20_000)
                with pytest.raises(ConnectionClosed):
                    await client.hear()
                assert client.socket.close_code == 1009
            await served.idle()
            assert service.num_sessions == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("limits", "code"), [({"idle_s": 0.1}, "idle_timeout"), ({"session_s": 0.1}, "session_expired")]
)
def test_a_conversation_that_lasts_too_long_is_ended(limits: dict[str, float], code: str) -> None:
    async def run() -> None:
        service = ToneService()
        async with serving(service, **limits) as served:
            async with talking(served) as client:
                assert (await client.hear())["error"]["code"] == code
                with pytest.raises(ConnectionClosed):
                    await client.hear()
                assert client.socket.close_code == 1000
                judge_all(client.events)
            await served.idle()
            assert service.num_sessions == 0

    asyncio.run(run())


def test_a_session_that_fails_is_told_and_closed() -> None:
    async def run() -> None:
        service = ToneService(breaks=True)
        async with serving(service) as served:
            async with talking(served) as client:
                await client.say("input_audio_buffer.append", audio=QUIET)
                error = (await client.hear())["error"]
                assert (error["type"], error["code"]) == ("server_error", "worker_lost")
                with pytest.raises(ConnectionClosed):
                    await client.hear()
                assert client.socket.close_code == 1011
            await served.idle()
            assert service.num_sessions == 0

    asyncio.run(run())


async def _greeted(client: Client) -> None:
    pass


async def _half_asked(client: Client) -> None:
    await client.say("input_audio_buffer.append", audio=QUIET)


async def _answered(client: Client) -> None:
    await ask(client)
    await client.until("response.output_audio.delta")


async def _cancelled(client: Client) -> None:
    await _answered(client)
    await client.say("response.cancel")


async def _broken(client: Client) -> None:
    await client.socket.send("{")


@pytest.mark.parametrize("state", [_greeted, _half_asked, _answered, _cancelled, _broken])
def test_an_abrupt_end_leaves_nothing(
    state: Callable[[Client], Coroutine[Any, Any, None]],
) -> None:
    async def run() -> None:
        service = ToneService(answer_s=60, ends=False)
        async with serving(service) as served:
            async with connect(served.url, max_size=None) as socket:
                client = Client(socket)
                await client.hear()
                before = len(asyncio.all_tasks())
                await state(client)
                socket.transport.abort()
            await served.idle()
            assert service.num_sessions == 0
            assert len(asyncio.all_tasks()) < before

    asyncio.run(run())


def test_many_connects_and_drops_leave_nothing() -> None:
    async def one(host: str, port: int) -> None:
        # By hand: a thousand of a whole client would take seconds.
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(
            b"GET /v1/realtime HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"Sec-WebSocket-Version: 13\r\n\r\n"
        )
        await reader.readuntil(b"session.created")
        writer.transport.abort()

    async def run() -> None:
        service = ToneService(max_sessions=1000)
        async with serving(service) as served:
            before = len(asyncio.all_tasks())
            host, _, port = urlsplit(served.url).netloc.partition(":")
            for _ in range(50):
                await asyncio.gather(*(one(host, int(port)) for _ in range(20)))
            await served.idle()
            assert service.opened == 1000
            assert service.num_sessions == 0
            assert len(asyncio.all_tasks()) <= before
            gc.collect()
            assert not [one for one in gc.get_objects() if type(one) is Conversation]

    asyncio.run(run())


@pytest.mark.parametrize("log_sound", [False, True])
def test_nothing_that_was_said_is_logged_unless_asked(
    log_sound: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with serving(ToneService(), log_sound=log_sound) as served, talking(served) as client:
            await ask(client)
            await client.until("response.done")

    with caplog.at_level(logging.DEBUG, logger="speechlm"):
        asyncio.run(run())
    assert bool(caplog.records) == log_sound
