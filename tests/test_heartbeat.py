"""A process is stuck where none of its threads gets on, and not where one works for long."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from calotype import heartbeat
from calotype.heartbeat import Activity

PATIENCE = 0.1


def compute():
    end = time.monotonic() + 3 * PATIENCE
    while time.monotonic() < end:
        pass


def wait():
    time.sleep(3 * PATIENCE)


def in_a_thread():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(compute).result()


def in_short_waits():
    for _ in range(12):
        time.sleep(PATIENCE / 4)


def in_a_process():
    """As the compiler of torch does: this process waits for another one, which works."""
    working = f"import time\nend = time.time() + {10 * PATIENCE}\nwhile time.time() < end: 0"
    subprocess.run([sys.executable, "-c", working], check=True)


def beside_an_idle_process():
    """As beside the page of `train --serve`."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as idle:
        time.sleep(5 * PATIENCE)
        wait()
        idle.kill()


def was_stuck(work):
    """Whether another thread sees, again and again, that this one is stuck while it does `work`."""
    seen, ended = [], threading.Event()

    def look():
        activity = Activity()
        while not ended.wait(PATIENCE / 10):
            seen.append(activity.stuck(PATIENCE))

    looks = threading.Thread(target=look, daemon=True)
    looks.start()
    work()
    ended.set()
    looks.join()
    return any(seen)


@pytest.mark.parametrize(
    ("work", "stuck"),
    [
        (compute, False),
        (in_a_thread, False),
        (in_short_waits, False),
        (in_a_process, False),
        (wait, True),
        (beside_an_idle_process, True),
    ],
)
def test_a_process_is_stuck_that_waits_and_not_one_that_works(work, stuck):
    assert was_stuck(work) == stuck


@pytest.mark.parametrize(("state", "stuck"), [(("D", "1", "1"), False), (("S", "1", "1"), True), ((), False)])
def test_a_disk_may_take_longer_and_what_is_not_known_counts_as_work(state, stuck, monkeypatch):
    monkeypatch.setattr(heartbeat, "thread_state", lambda thread: state)
    assert was_stuck(wait) == stuck
