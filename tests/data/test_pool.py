from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator

import pytest

from fullquant.data import pool_worker
from fullquant.data.pool import ProcessPool
from fullquant.data.pool_worker import read_message, resolve, serve, write_message
from fullquant.errors import DataError

_TARGET = "fullquant.data.pool_worker:resolve"  # resolve("operator:neg") returns a function of one argument


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    pool = ProcessPool(_TARGET, ("operator:neg",), 2)
    yield pool
    pool.close()


def test_jobs_are_answered(pool: ProcessPool) -> None:
    for number in range(20):
        pool.submit(number)
    answers = [pool.answer() for _ in range(20)]
    assert sorted((answer.job, answer.result) for answer in answers) == [(number, -number) for number in range(20)]
    assert pool.unanswered == 0


def test_failing_job_is_raised_with_its_traceback(pool: ProcessPool) -> None:
    pool.submit("text")
    error = pool.answer().error
    assert isinstance(error, RuntimeError)
    assert "bad operand type" in str(error)
    pool.submit(3)  # the worker goes on
    assert pool.answer().result == -3


def test_failing_start_is_an_answer_to_every_job() -> None:
    pool = ProcessPool("fullquant.data.nowhere:nothing", (), 1)
    for number in range(2):
        pool.submit(number)
    assert all("nowhere" in str(pool.answer().error) for _ in range(2))
    pool.close()


def test_exiting_worker_is_an_error() -> None:
    pool = ProcessPool(_TARGET, ("os:_exit",), 1)
    pool.submit(3)
    error = pool.answer().error
    assert isinstance(error, DataError)
    assert "ended with status 3" in str(error)
    pool.close()


def test_printing_jobs_do_not_disturb_the_answers(capfd: pytest.CaptureFixture[str]) -> None:
    pool = ProcessPool(_TARGET, ("builtins:print",), 1)
    pool.submit("noise")
    assert pool.answer().error is None
    pool.close()
    assert "noise" in capfd.readouterr().err


def test_cancel_and_close_are_quick_and_repeatable(pool: ProcessPool) -> None:
    for number in range(1000):
        pool.submit(number)
    pool.cancel_waiting()
    while pool.unanswered:
        pool.answer()
    pool.close()
    pool.close()


def test_close_in_a_forked_copy_spares_the_workers(pool: ProcessPool) -> None:
    child = os.fork() if hasattr(os, "fork") else pytest.skip("no fork here")
    if child == 0:
        pool.close()
        os._exit(0)
    os.waitpid(child, 0)
    pool.submit(1)
    assert pool.answer().result == -1


def _served(*messages: object) -> list[object]:
    jobs, results = io.BytesIO(), io.BytesIO()
    for message in messages:
        write_message(jobs, message)
    jobs.seek(0)
    serve(jobs, results)
    results.seek(0)
    answers = []
    while True:
        try:
            answers.append(read_message(results))
        except EOFError:
            return answers


def test_serve_answers_until_the_end() -> None:
    answers = _served((f"{__name__}:_attach", (10,)), 1, "x", "unpicklable")
    assert answers[0] == ("done", 11)
    kind, error, trace = answers[1]  # type: ignore[misc]
    assert (kind, type(error)) == ("failed", TypeError)
    assert "Traceback" in trace
    assert answers[2][:2] == ("failed", None)  # type: ignore[index]


def _attach(offset: int) -> Callable[[object], object]:
    def work(job: object) -> object:
        return (lambda: 0) if job == "unpicklable" else offset + job  # type: ignore[operator]

    return work


def test_cut_messages_are_the_end() -> None:
    whole = io.BytesIO()
    write_message(whole, "text")
    for length in range(len(whole.getvalue())):
        with pytest.raises(EOFError):
            read_message(io.BytesIO(whole.getvalue()[:length]))
    assert resolve("fullquant.data.pool_worker:serve") is pool_worker.serve
