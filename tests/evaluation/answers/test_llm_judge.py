r"""The judge against a server on this machine that speaks the protocol, faults and all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from chat_server import Reply, Server, completion
from hypothesis import given
from hypothesis import strategies as st

from speechlm.errors import ConfigError
from speechlm.evaluation.answers.llm_judge import (
    ChatJudge,
    JudgeConfig,
    JudgeError,
    Verdict,
    continuation_prompt,
    correctness_prompt,
    parse_rating,
    parse_yes_no,
    quality_prompt,
)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def judge(server: Server, **more: Any) -> ChatJudge:
    given = {"samples": 1, "backoff_s": 0.001, "retries": 2, "api_key": "very-secret", **more}
    return ChatJudge(JudgeConfig(model="m", base_url=server.url, **given))


def test_a_request_is_what_the_protocol_asks_for(server: Server) -> None:
    (verdict,) = judge(server, samples=3, seed=5).ask_many(["how good?"])
    assert verdict == Verdict(raw=("4", "4", "4"), usage={"total_tokens": 7})
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == "Bearer very-secret"
    (body,) = server.bodies
    assert body["messages"] == [{"role": "user", "content": "how good?"}]
    assert (body["n"], body["seed"], body["temperature"], body["model"]) == (3, 5, 0.5, "m")


def test_a_server_that_gives_one_answer_is_asked_again_with_another_seed(server: Server) -> None:
    server.answer = lambda number, _: (200, {}, completion(f"answer {number}"))
    (verdict,) = judge(server, samples=3, seed=5).ask_many(["?"])
    assert verdict.raw == ("answer 0", "answer 1", "answer 2")
    assert [body["seed"] for body in server.bodies] == [5, 6, 7]
    assert verdict.usage == {"total_tokens": 21}


def test_verdicts_keep_the_order_of_prompts_whatever_comes_first(server: Server) -> None:
    def answer(_: int, body: dict[str, Any]) -> Reply:
        said = body["messages"][0]["content"]
        time.sleep(0.05 if said == "0" else 0.0)
        return 200, {}, completion("nonsense" if said == "3" else said)

    server.answer = answer
    verdicts = judge(server, parallel=4).ask_many([str(i) for i in range(8)])
    assert [verdict.raw[0] for verdict in verdicts] == ["0", "1", "2", "nonsense", *"4567"]


@pytest.mark.parametrize(
    "fault",
    [
        (429, {"Retry-After": "0.01"}, b'{"error": "slow down"}'),
        (500, {}, b"oops"),
        (503, {}, b""),
        (200, {}, b"{not json"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"text": "4"}]}'),
        (200, {}, b"[]"),
        (200, {}, b"\xff\xfe"),
    ],
)
def test_a_passing_fault_is_asked_past(server: Server, fault: Reply) -> None:
    server.answer = lambda number, _: fault if number < 2 else (200, {}, completion("4"))
    assert judge(server).ask_many(["?"])[0].raw == ("4",)
    assert len(server.bodies) == 3


def test_a_fault_that_stays_is_one_line_without_the_key(server: Server) -> None:
    server.answer = lambda *_: (500, {}, b"oops\nvery\nlong")
    with pytest.raises(JudgeError, match=r"m at 127\.0\.0\.1.*HTTP 500: oops very long, 3 times"):
        judge(server).ask_many(["?"])
    assert len(server.bodies) == 3


def test_a_slow_server_times_out_and_is_asked_again(server: Server) -> None:
    def answer(number: int, _: dict[str, Any]) -> Reply:
        time.sleep(0.5 if number == 0 else 0.0)
        return 200, {}, completion("5")

    server.answer = answer
    assert judge(server, timeout_s=0.1).ask_many(["?"])[0].raw == ("5",)
    assert len(server.bodies) == 2


def test_nobody_at_the_address(server: Server) -> None:
    server.close()
    with pytest.raises(JudgeError, match="run again to go on"):
        judge(server, retries=1).ask_many(["?"])


def test_a_refused_key_ends_at_once(server: Server) -> None:
    server.answer = lambda *_: (401, {}, b"bad key")
    with pytest.raises(JudgeError, match="HTTP 401: bad key; set SPEECHLM_JUDGE") as caught:
        judge(server).ask_many(["?"])
    assert "very-secret" not in str(caught.value)
    assert len(server.bodies) == 1


def test_a_prompt_that_is_not_taken_is_told_and_the_others_are_judged(server: Server) -> None:
    def answer(_: int, body: dict[str, Any]) -> Reply:
        if body["messages"][0]["content"] == "bad":
            return 400, {}, b"filtered"
        return 200, {}, completion("3")

    server.answer = answer
    verdicts = judge(server).ask_many(["a", "bad", "b"])
    assert [verdict.raw for verdict in verdicts] == [("3",), (), ("3",)]
    assert verdicts[1].error == "HTTP 400: filtered"


def test_null_is_an_answer_of_no_words(server: Server) -> None:
    server.answer = lambda *_: (200, {}, completion(None))
    assert judge(server).ask_many(["?"])[0].raw == ("",)


def test_the_environment_names_a_judge_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPEECHLM_JUDGE", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert JudgeConfig.from_environment() is None
    monkeypatch.setenv("SPEECHLM_JUDGE", "some-model")
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL"):
        JudgeConfig.from_environment()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    found = JudgeConfig.from_environment(seed=4)
    assert found is not None
    assert (found.model, found.api_key, found.seed) == ("some-model", "very-secret", 4)
    assert "very-secret" not in repr(found)
    assert "very-secret" not in ChatJudge(found).name


@pytest.mark.parametrize("wrong", [{"base_url": "localhost:1"}, {"model": ""}, {"samples": 0}])
def test_a_wrong_configuration_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        JudgeConfig(**{"model": "m", "base_url": "http://127.0.0.1/v1", **wrong})


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("4", 4),
        (" 4.\n", 4),
        ("**5**", 5),
        ("3.0", 3),
        ("It drifts off.\n\\boxed{2}", 2),
        ("Rating: [[1]]", 1),
        ("[[3]] as I said, [[3]]", 3),
        ("[[3]] or [[4]]", None),
        ("\\boxed{6}", None),
        ("0", None),
        ("-4", None),
        ("4.5", None),
        ("45", None),
        ("4/5", None),
        ("Score: 4", None),
        ("I cannot rate 5 of these", None),
        ("", None),
        ("\\boxed{}", None),
    ],
)
def test_ratings_are_read_strictly(text: str, rating: int | None) -> None:
    assert parse_rating(text) == rating


@given(st.text())
def test_any_text_is_a_rating_in_range_or_none(text: str) -> None:
    assert parse_rating(text) in (None, 1, 2, 3, 4, 5)
    assert parse_yes_no(text) in (None, True, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", True),
        ("no.", False),
        ("[[YES]]", True),
        ("**No**", False),
        ("Yes, but", None),
        ("", None),
        ("yes [[no]]", False),
    ],
)
def test_yes_and_no_are_read_strictly(text: str, said: bool | None) -> None:
    assert parse_yes_no(text) is said


def test_prompts_hold_what_is_judged() -> None:
    assert "<continuation>\nB\n</continuation>" in continuation_prompt("A", "B")
    assert "<reference>\nR\n</reference>" in correctness_prompt("Q", "R", "A")
    prompt = quality_prompt(
        [("q1", "a1"), ("q2", "a2")], references=["r1", "r2"], asked_for="Sing."
    )
    assert prompt.index("a1") < prompt.index("r1") < prompt.index("q2") < prompt.index("r2")
    assert "What matters most here: Sing." in prompt
    assert "conversation as a whole" in prompt
    assert "whole" not in quality_prompt([("q", "a")])
