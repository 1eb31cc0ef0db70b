# SPDX-License-Identifier: Apache-2.0
"""Few calls at the same time. concurrent.futures would cost 13 ms of CPU time for its import (logging), in each start that fetches."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

_THREADS = 4
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_threads(call: Callable[[_Item], _Result], items: Iterable[_Item], cancel: Callable[[], None] = lambda: None) -> list[_Result]:
    """As list(map(call, items)), four at a time. Raises what the first of them raises that fails; what has not begun then does not.

    When a signal ends the wait, `cancel` shall make the calls end, which are waited for; a further one ends that, too.
    """
    waiting = deque(enumerate(items))
    if len(waiting) < 2:
        return [call(item) for _, item in waiting]
    results: dict[int, _Result] = {}
    faults: dict[int, BaseException] = {}

    def work() -> None:
        while not faults:
            try:
                number, item = waiting.popleft()
            except IndexError:
                return
            try:
                results[number] = call(item)
            except BaseException as error:
                faults[number] = error

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_THREADS, len(waiting)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:  # only the main thread is told of signals
        faults[-1] = error
        cancel()
        for thread in threads:
            if thread.ident:  # it was started
                thread.join()
        raise
    if faults:
        raise faults[min(faults)]
    return [results[number] for number in sorted(results)]
