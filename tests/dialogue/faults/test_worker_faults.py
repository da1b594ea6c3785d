"""The process that runs the model: killed, stopped, crowded, missing; it is built anew."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_services import PLAIN, answer, memory_mb, open_files, question, told
from small_talk import silence, talker

pytest.importorskip("onnxruntime")

from speechlm.dialogue import worker as worker_module
from speechlm.dialogue.messages import Commit, Failed, Hear, Respond
from speechlm.dialogue.service import Busy, SpeechRequest
from speechlm.dialogue.worker import WorkerService
from speechlm.errors import CheckpointError, InputError

Try = Callable[[Callable[[WorkerService], Coroutine[Any, Any, None]]], None]


@asynccontextmanager
async def recovering(service: WorkerService) -> AsyncIterator[None]:
    """The worker is lost within; wait for the next one."""
    lost = service.pid
    yield
    async with asyncio.timeout(60):
        while service.pid == lost or not service.ready:
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Try]:
    """Runs attempts against one service, in one loop: a worker takes seconds to start."""
    folder = tmp_path_factory.mktemp("worker") / "bundle"
    talker().save_pretrained(folder)
    with asyncio.Runner() as runner:
        service = WorkerService(folder, max_sessions=3)
        runner.run(service.__aenter__())
        yield lambda work: runner.run(work(service))
        runner.run(service.__aexit__())
    assert service.pid is None or not Path(f"/proc/{service.pid}/cmdline").exists()


def test_it_answers_as_the_model_in_this_process(attempt: Try) -> None:
    async def work(service: WorkerService) -> None:
        from speechlm.dialogue.local import LocalService

        there = await answer(service)
        async with LocalService(talker()) as local:
            here = await answer(local)
        assert len(there)
        assert np.array_equal(there, here)
        assert await service.probe() > 0
        assert service.num_sessions == 0

    attempt(work)


def test_over_capacity_is_said_at_once(attempt: Try) -> None:
    async def work(service: WorkerService) -> None:
        sessions = [await service.open(PLAIN) for _ in range(3)]
        with pytest.raises(Busy) as refused:
            await service.open(PLAIN)
        assert refused.value.code == "session_limit_reached"
        await sessions.pop().close()
        sessions.append(await service.open(PLAIN))
        for session in sessions:
            await session.close()
        assert service.num_sessions == 0

    attempt(work)


def test_reading_aloud_goes_on_beside_a_conversation(attempt: Try) -> None:
    async def work(service: WorkerService) -> None:
        request = SpeechRequest(units=((1, 2, 3, 4) * 30,), sample_rate=16_000)

        async def read() -> int:
            return sum([len(piece) async for piece in service.speak(request)])

        spoken, answered = await asyncio.gather(read(), answer(service))
        assert spoken == 120 * 320
        assert len(answered)
        with pytest.raises(InputError, match="does not write down"):
            await service.transcribe(question(), 16_000)

    attempt(work)


def test_connects_and_drops_leave_nothing(attempt: Try) -> None:
    async def work(service: WorkerService) -> None:
        async def some(count: int) -> None:
            for number in range(count):
                session = await service.open(PLAIN)
                session.send(Hear(samples=question()[:3200]))
                if number % 3:
                    session.send(Commit())
                    session.send(Respond(response_id="r"))
                await session.close()

        await some(10)
        await service.probe()
        files = open_files(), open_files(service.pid or 0)
        memory = memory_mb(), memory_mb(service.pid or 0)
        await some(60)
        await service.probe()
        assert service.num_sessions == 0
        assert (open_files(), open_files(service.pid or 0)) == files
        assert memory_mb() - memory[0] < 20
        assert memory_mb(service.pid or 0) - memory[1] < 20

    attempt(work)


def test_a_killed_worker_fails_its_sessions_and_a_new_one_serves(attempt: Try) -> None:
    async def work(service: WorkerService) -> None:
        first, second = await service.open(PLAIN), await service.open(PLAIN)
        first.send(Hear(samples=question()))
        files = open_files()
        pid = service.pid
        assert pid is not None
        async with recovering(service):
            os.kill(pid, signal.SIGKILL)
            for session in (first, second):
                failed = (await told(session, Failed))[-1]
                assert isinstance(failed, Failed)
                assert failed.code == "worker_lost"
            assert service.num_sessions == 0
            with pytest.raises(Busy) as refused:
                await service.open(PLAIN)
            assert refused.value.code == "worker_unavailable"
            first.send(Hear(samples=question()))  # let pass
        assert len(await answer(service))
        await asyncio.sleep(0.2)
        assert open_files() <= files

    attempt(work)


def test_a_stopped_worker_is_replaced_and_blocks_nobody(
    attempt: Try, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it while sound goes on to come, more than a pipe holds."""
    monkeypatch.setattr(worker_module, "STUCK_S", 3.0)

    async def work(service: WorkerService) -> None:
        session = await service.open(PLAIN)
        pid = service.pid
        assert pid is not None
        async with recovering(service):
            os.kill(pid, signal.SIGSTOP)
            opening = asyncio.create_task(service.open(PLAIN))
            probing = asyncio.create_task(service.probe())
            for _ in range(50):
                session.send(Hear(samples=silence(1.0)))
            assert session.backlog_s > 40
            failed = (await told(session, Failed))[-1]
            assert isinstance(failed, Failed)
            assert "has not answered" in failed.message
            for task in (opening, probing):
                with pytest.raises(Busy) as refused:
                    await task
                assert refused.value.code == "worker_unavailable"
        assert len(await answer(service))

    attempt(work)


def test_a_bundle_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    service = WorkerService(tmp_path)
    with pytest.raises(CheckpointError, match=r"is not a bundle: it holds no speechlm\.json"):
        service.start()
    assert not service.ready
    service.close()
