"""A document is forgotten through real Airflow: the day that held it is prepared again there, as a day without documents, and every file is searched.

It runs after test_whole_job.py, by its name: the day it adds and empties makes the whole job's corpus another version, on which nothing is built yet.
"""

from __future__ import annotations

import datetime as dt
import json

import pytest
from whole_job import RECIPE, WholeJob

from jobs import forget, launch
from jobs.config import PREPARE_STAGES
from jobs.services import delta, results
from jobs.services.airflow import AirflowClient
from jobs.stages.ingest import doc_id

pytestmark = pytest.mark.integration

LETTER = (
    "My dear Quetzalcoatl, it has been a long time since you and I sat in the garden behind the old house and spoke about the things that we would do "
    "when the summer was over. I have kept the letters that you sent to me from the coast, and I read them again when the evenings are cold and the "
    "house is quiet. There is one that I like the most, the one about the boat that nobody wanted to buy, and about the man who painted it in a colour "
    "that only the sea knows. Please write to me of your mother, and of the work that they gave you at the harbour, and tell me whether the dog that "
    "followed us to the station has found the home that he was looking for. With all my heart, and in the hope that we meet again before the year ends."
)


def test_the_only_document_of_a_day_is_forgotten_and_its_day_prepared_again(whole_job: WholeJob) -> None:
    env = whole_job.env
    day = (dt.date.fromisoformat(whole_job.days[0]) - dt.timedelta(days=9)).isoformat()
    file = env.landing / "letters" / day / "a.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"uri": "letters/1", "text": LETTER}) + "\n")
    launch.backfill(env, [day], recipe=RECIPE, echo=lambda _: None)
    secret = doc_id("letters", "letters/1", LETTER)
    assert [r["doc_id"] for r in delta.rows(env, "training_documents") if r["interval"] == day] == [secret]

    file.unlink()  # the person took it out of the landing zone first
    said: list[str] = []
    found = forget.forget(env, secret, why="asked by letter", echo=said.append)
    assert (found["gone"], found["left"], found["to_do"]) == (True, [], [])
    assert found["prepared_again"][0] == f"{RECIPE} {day}"  # and again by recipes of other tests that share its first stages
    assert found["landing_files"] == [] and said[0] == f"{RECIPE}: preparing {day} again"
    assert not [r for name in ("documents", "training_documents", "sequences", "fingerprints") for r in delta.rows(env, name) if r["interval"] == day]
    assert forget.check(env, secret)["exit_status"] == 0

    ingested = results.newest(env, "ingest", interval=day)
    assert ingested.metrics["documents"] == 0
    with AirflowClient(env) as client:
        runs = [run for run in client.dag_runs("prepare_corpus") if run["data_interval_start"].startswith(day)]
        tries = {stage: max(t["try_number"] for run in runs for t in client.task_tries("prepare_corpus", run["dag_run_id"], stage)) for stage in PREPARE_STAGES}
    assert min(tries.values()) >= 2, "every stage of the day ran in Airflow, first and again"
