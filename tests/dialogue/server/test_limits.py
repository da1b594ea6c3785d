"""So many at once: the others are refused at once, or wait in a queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("prometheus_client")
pytest.importorskip("starlette")

from speechlm.dialogue.local import LocalService
from speechlm.dialogue.server.limits import LimitedService
from speechlm.dialogue.server.metrics import Metrics
from speechlm.dialogue.server.settings import ServerSettings
from speechlm.dialogue.service import Busy, SpeechRequest
from speechlm.dialogue.settings import SessionSettings, TurnSettings
from speechlm.errors import InputError

SESSION = SessionSettings()
Within = Callable[..., None]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def within(service: LocalService, metrics: Metrics) -> Within:
    """Runs a test with a service of so many places."""

    def run(test: Callable[[LimitedService], Awaitable[None]], **limits: Any) -> None:
        settings = ServerSettings(model="small", **limits)

        async def start() -> None:
            async with service:
                await test(LimitedService(service, settings, metrics))

        asyncio.run(start())

    return run


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_one_more_than_there_are_places_is_refused_at_once(
    within: Within, metrics: Metrics
) -> None:
    async def test(service: LimitedService) -> None:
        first, second = await service.open(SESSION), await service.open(SESSION)
        with pytest.raises(Busy, match="all 2 sessions are taken") as busy:
            await service.open(SESSION)
        assert busy.value.code == "session_limit_reached"
        assert 'refusals_total{code="session_limit_reached"} 1.0' in metrics.render().decode()
        await first.close()
        await first.close()  # only one place is given back
        assert service.num_sessions == 1
        third = await service.open(SESSION)
        with pytest.raises(Busy):
            await service.open(SESSION)
        await second.close()
        await third.close()
        assert service.num_sessions == 0

    within(test, max_sessions=2)


def test_who_waits_is_let_in_in_order(within: Within) -> None:
    async def test(service: LimitedService) -> None:
        first = await service.open(SESSION)
        order: list[str] = []

        async def wait(name: str) -> None:
            session = await service.open(SESSION)
            order.append(name)
            await session.close()

        second, third = asyncio.create_task(wait("second")), asyncio.create_task(wait("third"))
        await settle()
        assert service.num_waiting == 2
        with pytest.raises(Busy, match="all 1 sessions are taken, and 2 wait"):
            await service.open(SESSION)
        await first.close()
        await asyncio.gather(second, third)
        assert order == ["second", "third"]
        assert (service.num_sessions, service.num_waiting) == (0, 0)

    within(test, max_sessions=1, queue_size=2)


def test_who_waits_too_long_is_told_its_place(within: Within) -> None:
    async def test(service: LimitedService) -> None:
        first = await service.open(SESSION)
        with pytest.raises(Busy, match=r"within 0.02 s; .* from place 1 of the queue to 1"):
            await service.open(SESSION)
        assert service.num_waiting == 0
        await first.close()
        await (await service.open(SESSION)).close()

    within(test, max_sessions=1, queue_size=5, queue_s=0.02)


def test_who_leaves_the_queue_takes_no_place_with_it(
    within: Within,
) -> None:
    async def test(service: LimitedService) -> None:
        first = await service.open(SESSION)
        left, gone = (asyncio.create_task(service.open(SESSION)) for _ in range(2))
        await settle()
        left.cancel()
        await settle()
        assert service.num_waiting == 1
        # It leaves in the very moment in which its turn comes.
        await first.close()
        gone.cancel()
        await asyncio.gather(left, gone, return_exceptions=True)
        assert (service.num_sessions, service.num_waiting) == (0, 0)

    within(test, max_sessions=1, queue_size=5)


def test_a_draining_service_lets_nobody_in_and_sends_the_queue_away(
    within: Within,
) -> None:
    async def test(service: LimitedService) -> None:
        first = await service.open(SESSION)
        waiting = asyncio.create_task(service.open(SESSION))
        await settle()
        service.drain()
        for refused in (waiting, service.open(SESSION)):
            with pytest.raises(Busy, match="is being stopped") as busy:
                await refused
            assert busy.value.code == "draining"
        assert not service.answering
        await first.close()
        assert service.num_sessions == 0

    within(test, max_sessions=1, queue_size=5)


def test_reading_aloud_takes_a_place_until_it_is_over_or_given_up(
    within: Within,
) -> None:
    async def test(service: LimitedService) -> None:
        sound = service.speak(SpeechRequest(units=((1, 2, 3) * 20,)))
        assert len(await anext(sound))
        assert service.answering
        with pytest.raises(Busy):
            await service.open(SESSION)
        await sound.aclose()  # type: ignore[attr-defined]
        assert (service.num_sessions, service.answering) == (0, False)
        with pytest.raises(InputError):
            await anext(service.speak(SpeechRequest(units=((10**6,),))))
        assert service.num_sessions == 0

    within(test, max_sessions=1)


def test_a_session_that_cannot_be_opened_takes_no_place(
    within: Within,
) -> None:
    async def test(service: LimitedService) -> None:
        with pytest.raises(InputError):
            await service.open(SessionSettings(turns=TurnSettings(policy="none")))
        assert service.num_sessions == 0

    within(test, max_sessions=1)
