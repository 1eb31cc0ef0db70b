# SPDX-License-Identifier: Apache-2.0
"""Calls at the same time, and their end by a signal."""

import signal
import threading
import time

import pytest

from rktd_units.images.threads import map_threads


def test_results_are_in_order_and_the_first_fault_is_raised() -> None:
    assert map_threads(lambda n: n * n, range(9)) == [n * n for n in range(9)]

    def call(number: int) -> None:
        if number:
            raise ValueError(str(number))

    with pytest.raises(ValueError, match=r"^1$"):
        map_threads(call, (0, 1))


def test_a_signal_cancels_all_and_waits_for_their_end() -> None:
    signal.signal(signal.SIGUSR1, signal.default_int_handler)  # SIGINT may be ignored here: nobody may have a terminal
    begun, cancelled, ended = threading.Barrier(3), threading.Event(), []

    def call(number: int) -> None:
        begun.wait()
        cancelled.wait()
        ended.append(number)

    def interrupt() -> None:
        begun.wait()
        time.sleep(0.2)  # one that comes when the wait is about to begin is seen at its end only
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        map_threads(call, (1, 2), cancelled.set)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    assert sorted(ended) == [1, 2]
