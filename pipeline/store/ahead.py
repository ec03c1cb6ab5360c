"""Doing a few things ahead, in order: reads of several videos overlap, memory stays bounded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], ahead: int, *, threads: int
) -> Iterator[Result]:
    """``map(work, items)``, with up to ``ahead`` results made before they are asked for.

    Results come in the order of ``items``; an error is raised at its turn and ends the iteration.
    ``items`` is not read further than ``ahead`` beyond what was asked for. Closing the iterator
    waits for what is under way and drops it.

    Args:
        work: called from several threads.
        items: of any length.
        ahead: how many results wait, or are under way, beside the one that is handed out.
        threads: how many calls go on at once.
    """
    waiting: deque[Future[Result]] = deque()
    remaining = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        while True:
            for item in remaining:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    break
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
