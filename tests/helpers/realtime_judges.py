"""Two readers of other projects that judge every event that is sent in a test."""

from __future__ import annotations

import json
import warnings
from functools import cache
from typing import Any

import pytest

JSON = dict[str, Any]


@cache
def _openai_reader() -> Any:
    pytest.importorskip("openai")
    from openai.types.realtime import RealtimeServerEvent
    from pydantic import TypeAdapter

    return TypeAdapter(RealtimeServerEvent)


@cache
def _pipecat_reader() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        events = pytest.importorskip("pipecat.services.openai.realtime.events")
    return events.parse_server_event


def judge(event: JSON) -> None:
    """Fail where openai's types or pipecat's parser would not take an event."""
    read = _openai_reader().validate_python(event)
    # A union whose members ignore what they do not know takes much: it must be the right one.
    assert read.type == event["type"]
    parsed = _pipecat_reader()(json.dumps(event))
    assert parsed is not None, event["type"]
    assert parsed.type == event["type"]


def judge_all(events: list[JSON]) -> list[JSON]:
    for event in events:
        judge(event)
    return events
