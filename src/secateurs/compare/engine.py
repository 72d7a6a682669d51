"""Where jobs run: in this process, in several on this machine, or on a Ray cluster.

A job is a pure function of what all jobs share and of what is its own, and it runs on one thread
wherever it runs, so the results are the same bits in each engine. What is shared is sent to a
worker once. A worker that dies takes nothing with it: what it had in hand is done again.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

import torch

from ..errors import ConfigError, MissingExtraError, WorkerError, nearest

Engine: TypeAlias = Literal["processes", "ray"]
Function: TypeAlias = Callable[[Any, Any], Any]
Run: TypeAlias = Callable[[Sequence[Any]], Iterator[tuple[int, Any]]]

ATTEMPTS = 3  # of a job whose workers die


def open_engine(
    engine: Engine | None, function: Function, shared: Any, workers: int | None = None
) -> AbstractContextManager[Run]:
    """Make workers ready to compute function(shared, job) for any job.

    Args:
        engine: None for this process, 'processes', or 'ray', which joins the cluster that is
            there and starts one on this machine if none is.
        function, shared: sent to each worker once; a job must leave `shared` as it is.
        workers: how many work at a time; by default one for each processor.

    Returns:
        A context whose value takes a list of jobs and yields (index, result) as they finish. An
        error in a job is raised where its result would be.

    Raises:
        ConfigError: no such engine, no workers, or something that cannot be sent.
        MissingExtraError: Ray is not installed.
        WorkerError: workers die again and again.

    >>> with open_engine(None, lambda shared, job: shared + job, 10) as run:
    ...     list(run([1, 2]))
    [(0, 11), (1, 12)]
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"jobs must be at least 1, not {workers}")
    if engine is None:
        return _here(function, shared)
    if engine == "processes":
        return _processes(function, shared, workers or os.cpu_count() or 1)
    if engine == "ray":
        return _on_ray(function, shared, workers)
    raise ConfigError(f"no engine is called {engine!r}{nearest(str(engine), ('processes', 'ray'))}")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: more would sum in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _alone(function: Function, shared: Any, job: Any) -> Any:
    """The result of a job; Accelerate collects garbage often, and need not look at all there is."""
    gc.freeze()
    try:
        with one_thread():
            return function(shared, job)
    finally:
        gc.unfreeze()


# ---------------------------------------------------------------------- this process
@contextlib.contextmanager
def _here(function: Function, shared: Any) -> Iterator[Run]:
    def run(jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, job in enumerate(jobs):
            yield index, _alone(function, shared, job)

    yield run


# ---------------------------------------------------------------------- processes
_received: list[Any] = []  # in a worker: the function and what is shared


def _receive(function: Function, shared: Any) -> None:
    _received[:] = [function, shared]


def _in_process(job: Any) -> Any:
    function, shared = _received
    return _alone(function, shared, job)


@contextlib.contextmanager
def _processes(function: Function, shared: Any, workers: int) -> Iterator[Run]:
    from loky import ProcessPoolExecutor

    def start() -> Any:
        return ProcessPoolExecutor(workers, initializer=_receive, initargs=(function, shared))

    pools = [start()]

    def run(jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        waiting = dict(enumerate(jobs))
        fruitless = 0
        while waiting:
            before, broken = len(waiting), False
            futures = {_submit(pools[-1], job): index for index, job in waiting.items()}
            for future in as_completed(futures):
                try:
                    result = future.result()
                except BrokenProcessPool:
                    broken = True
                    continue
                yield futures[future], result
                del waiting[futures[future]]
            if broken:
                fruitless = fruitless + 1 if len(waiting) == before else 0
                if fruitless == ATTEMPTS:
                    raise _dead(len(waiting))
                pools[-1].shutdown(kill_workers=True)
                pools.append(start())

    try:
        with warnings.catch_warnings():
            # a worker that has grown is replaced by a new one, which is as it should be
            warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
            yield run
    finally:
        pools[-1].shutdown(kill_workers=True)


def _submit(pool: Any, job: Any) -> Any:
    try:
        return pool.submit(_in_process, job)
    except BrokenProcessPool:
        raise
    except Exception as error:  # whatever the pickling of a user's objects raises
        raise _unsendable(error) from error


# ---------------------------------------------------------------------- Ray
@contextlib.contextmanager
def _on_ray(function: Function, shared: Any, workers: int | None) -> Iterator[Run]:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("engine='ray' needs Ray: pip install 'secateurs[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        _join_or_start(workers)
    try:
        limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        try:
            place = ray.put((function, shared))
        except Exception as error:  # whatever the pickling of a user's objects raises
            raise _unsendable(error) from error
        remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(_in_ray)
        yield functools.partial(_spread, remote, place, limit)
    finally:
        if ours:
            ray.shutdown()


def _join_or_start(workers: int | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)


def _spread(remote: Any, place: Any, limit: int, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """At most `limit` jobs at a time, and their results as they finish."""
    import ray

    todo = list(enumerate(jobs))[::-1]
    under_way: dict[Any, int] = {}
    try:
        while todo or under_way:
            while todo and len(under_way) < limit:
                index, job = todo.pop()
                under_way[remote.remote([place], job)] = index
            done, _ = ray.wait(list(under_way), num_returns=1)
            index = under_way.pop(done[0])
            yield index, _result(done[0], len(under_way) + len(todo) + 1)
    finally:
        for left in under_way:
            ray.cancel(left, force=True)


def _result(reference: Any, left: int) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise _dead(left) from error


def _in_ray(place: list[Any], job: Any) -> Any:
    function, shared = _fetch(place[0])
    return _alone(function, shared, job)


@functools.lru_cache(maxsize=1)
def _fetch(reference: Any) -> Any:
    """What is shared, brought to this worker once."""
    import ray

    return ray.get(reference)


# ---------------------------------------------------------------------- errors
def _dead(left: int) -> WorkerError:
    return WorkerError(
        f"workers died {ATTEMPTS} times over the same jobs, {left} of which are left; likely the "
        "memory is short: use fewer jobs, or fewer examples in a batch"
    )


def _unsendable(error: Exception) -> ConfigError:
    why = next((line for line in str(error).splitlines() if "pickle" in line), type(error).__name__)
    return ConfigError(
        f"the workers cannot be given what they need: {why}; model, data and functions must be "
        "picklable (no open files, no generators), or use engine=None"
    )
