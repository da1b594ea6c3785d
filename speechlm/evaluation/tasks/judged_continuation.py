"""What a judge thinks of continuations: would a person have gone on so?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from speechlm.data.corpus import Recording
from speechlm.evaluation.answers.llm_judge import JudgeError, continuation_prompt
from speechlm.evaluation.recognizer import SpeechRecognizer
from speechlm.evaluation.tasks.items import Item
from speechlm.evaluation.tasks.job import Job
from speechlm.evaluation.tasks.judged import ask_judge, configured_judge, rating_figures
from speechlm.evaluation.tasks.prompts import Heard, Protocol, transcribe, try_hear
from speechlm.evaluation.tasks.results import Result


def judged_rows(
    job: Job,
    recordings: Sequence[Recording],
    items: Sequence[Item],
    protocol: Protocol,
    recognizer: SpeechRecognizer,
    data_sha256: str,
) -> Iterator[Result]:
    """A judge's 1 to 5 of each continuation; no rows where no judge is configured.

    It reads transcripts of the prompt and of the continuation. A continuation in which no word is
    heard is not asked about: it is counted in ``alone/empty``.
    """
    judge = configured_judge(job.seed)
    if judge is None:
        return
    said = {item.id: item.note["transcripts"]["alone"] for item in items if not item.error}
    asked = [one for one in recordings if said.get(one.id)]
    blank = job.row(data_sha256=data_sha256, asr=recognizer.name, judge=judge.name)
    model = job.system.bundle
    heard = [one for one in try_hear(model, asked, protocol).values() if isinstance(one, Heard)]
    rate = model.tokenizer.sample_rate
    beginnings = transcribe(recognizer, [one.prompt for one in heard], rate)
    prompts = {
        one.recording.id: continuation_prompt(beginning, said[one.recording.id])
        for one, beginning in zip(heard, beginnings, strict=True)
    }
    try:
        verdicts = ask_judge(job, judge, prompts)
    except JudgeError as error:
        yield replace(blank, variant="alone/judge_1_5", error=str(error))
        return
    rated = [
        item if item.error else replace(item, figures=rating_figures("alone", item.note["raw"]))
        for item in verdicts.values()
    ]
    yield from job.rows(rated, data_sha256, asr=recognizer.name, judge=judge.name)
