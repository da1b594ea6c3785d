import re
from collections import Counter

from speechlm.data.human import human_clips
from speechlm.data.questions import questions


def test_the_world_is_large_enough_and_nothing_is_asked_twice() -> None:
    world = questions()
    assert len({question.name for question in world}) == len(world) >= 60
    wordings = [wording for question in world for wording in question.wordings]
    assert len(set(wordings)) == len(wordings)
    assert all(2 <= len(question.wordings) <= 3 for question in world)


def test_every_answer_is_recorded_and_every_recording_is_asked_for() -> None:
    assert {question.answer for question in questions()} == human_clips("answers").keys()


def test_no_answer_dominates() -> None:
    _, most = Counter(question.answer for question in questions()).most_common(1)[0]
    assert most <= 3


def test_names_work_in_file_names() -> None:
    assert all(re.fullmatch(r"[a-z-]+", question.name) for question in questions())


def test_the_answers_are_right() -> None:
    answer = {question.wordings[0]: question.answer for question in questions()}
    assert answer["What comes after seven?"] == "eight"
    assert answer["What comes before one?"] == "zero"
    assert answer["What is four plus five?"] == "nine"
    assert answer["What is twelve minus two?"] == "ten"
    assert answer["What is ten more than ninety?"] == "hundred"
    assert answer["Which day follows Saturday?"] == "sunday"
    assert answer["Which day comes before Sunday?"] == "saturday"
    assert answer["Which month comes before January?"] == "december"
    assert answer["What is the word for the letter B, as in boat?"] == "bravo"
    assert answer["Which place comes after second?"] == "third"


def test_the_example_word_begins_with_its_letter() -> None:
    letters = 0
    for question in questions():
        for wording in question.wordings:
            if found := re.search(r"\b([A-Z]), as in (\w)", wording):
                assert found[1].lower() == found[2] == question.answer[0]
                letters += 1
    assert letters == 26 * 3
