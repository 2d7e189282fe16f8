"""The thread that writes: what it is given it carries out, one call after the other."""

import threading

import pytest
import trio
import trio.testing

from streamline_trio.stores.sqlite._thread import WriterThread

NAME = "the writer under test"


def threads():
    return [thread for thread in threading.enumerate() if thread.name == NAME]


class Looks:
    """What is done between calls; counts them."""

    def __init__(self):
        self.count = 0
        self.first = threading.Event()

    def __call__(self):
        assert threading.current_thread() in threads()
        self.count += 1
        self.first.set()


@pytest.fixture
def looks():
    return Looks()


@pytest.fixture
def thread(looks):
    thread = WriterThread(NAME, looks)
    yield thread
    thread.stop()
    assert threads() == []


async def test_it_runs_from_the_first_call_until_it_is_stopped(thread):
    """There is one thread, whatever the number of calls, and none afterwards; a later call starts another."""
    assert threads() == []
    for number in range(3):
        assert await thread.run(divmod, 7 + number, 5) == divmod(7 + number, 5)
        assert len(threads()) == 1
    thread.stop()
    assert threads() == []
    assert await thread.run(threading.current_thread) in threads()


async def test_errors_come_to_the_caller_of_their_own_call(thread):
    """What a call raises is raised where it was asked for, and the thread goes on."""
    with pytest.raises(ZeroDivisionError):
        await thread.run(divmod, 1, 0)
    assert await thread.run(int, "7") == 7


async def test_what_has_begun_is_waited_for_and_what_waits_is_withdrawn(thread):
    """Cancellation takes back a call that has not begun, and returns the result of one that has."""
    entered, leave = threading.Event(), threading.Event()
    done: list[str] = []

    def slow():
        entered.set()
        assert leave.wait(10)
        return "slow"

    async with trio.open_nursery() as nursery:

        async def first():
            with trio.CancelScope() as scope:
                scopes.append(scope)
                done.append(await thread.run(slow))

        async def second():
            with trio.CancelScope() as scope:
                scopes.append(scope)
                await thread.run(done.append, "never")

        scopes: list[trio.CancelScope] = []
        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        assert await trio.to_thread.run_sync(entered.wait, 10)
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        for scope in scopes:
            scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert [scope.cancelled_caught for scope in scopes] == [False, True]
        leave.set()
    assert await thread.run(int, "1") == 1
    assert done == ["slow"]
    assert not scopes[0].cancelled_caught


async def test_it_serves_several_trio_runs(thread):
    """Each call wakes the task, and the trio run, that made it."""

    def other_run():
        return trio.run(thread.run, int, "2")

    assert await thread.run(int, "1") == 1
    assert await trio.to_thread.run_sync(other_run) == 2
    assert await thread.run(int, "3") == 3


async def test_an_interrupt_does_not_end_the_task_that_is_to_be_woken(thread):
    """Ctrl-C while a call is handed over comes after it, so that the thread wakes a task that exists."""
    protected = []
    await thread.run(int, "1")
    put = thread._jobs.put

    class Watched:
        def put(self, job):
            protected.append(trio.lowlevel.currently_ki_protected())
            put(job)

        get = thread._jobs.get

    before, thread._jobs = thread._jobs, Watched()
    assert await thread.run(int, "2") == 2
    thread._jobs = before
    assert protected == [True]


async def test_it_looks_around_while_it_has_nothing_to_do(thread, looks):
    """Without a call for a while, and not before the first call."""
    assert threads() == []
    await thread.run(int)
    await trio.to_thread.run_sync(looks.first.wait, 10)
    assert looks.first.is_set()


async def test_it_looks_around_now_and_then_while_it_is_busy(thread, looks):
    """Calls that follow each other without a pause do not keep it from looking."""
    for _ in range(40 + 1):  # it looks after a call has been answered
        await thread.run(int)
    assert looks.count >= 40 // 8
