"""The demo from beginning to end: start orders, kill the worker half-way, start another, look into the books."""

from __future__ import annotations

import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec
import trio

from streamline_trio import Run, StreamlineError, ValidationError, open_engine
from streamline_trio.demo.check import SETTLED, Snapshot, check, finished_steps, repeated, undone_steps
from streamline_trio.demo.crew import WorkerProcess
from streamline_trio.demo.orders import Order, read_orders
from streamline_trio.demo.people import Approver
from streamline_trio.demo.shop import Line, Shop, Tail
from streamline_trio.demo.show import Figures, Progress, View
from streamline_trio.demo.workflow import order_workflow

ORDERS_PER_SECOND = 40.0
GIVE_UP_AFTER = 60.0
_LOOKS_EVERY = 0.1
_RATE_OVER = 2.0
RunStatus = Literal["draft", "running", "waiting", "compensating", "done", "failed", "compensated"]
_STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)
_decode = msgspec.json.Decoder(Line).decode


def run_demo(view: View, *, store: str | None = None, orders: int | None = None) -> Figures:
    """Run the demo, with its files in a directory that is removed at the end.

    `store` is the URL of a store that several processes can reach; runs stay there. None: a SQLite file among
    the other files.
    """
    chosen = _chosen(orders)
    if store is not None and store.startswith("memory:"):
        raise ValidationError(
            "the demo starts worker processes, which cannot reach memory:; give it sqlite:///path.db"
        )
    with tempfile.TemporaryDirectory(prefix="streamline-demo-", ignore_cleanup_errors=True) as name, view:
        folder = Path(name)
        demo = _Demo(view, folder, chosen, store or f"sqlite:///{folder / 'orders.db'}")
        return trio.run(demo.run)


def _chosen(count: int | None) -> list[Order]:
    orders = read_orders()
    if count is not None and not 1 <= count <= len(orders):
        raise ValidationError(f"there are {len(orders)} orders: --orders is a number from 1 to {len(orders)}")
    return orders[:count]


class _Demo:
    """One showing. The name of its directory, which no other has, tags its runs."""

    def __init__(self, view: View, folder: Path, orders: Sequence[Order], store: str) -> None:
        self._view = view
        self._folder = folder
        self._tag = folder.name
        self._orders = orders
        self._store = store
        self._shop = Shop(folder, "nobody")
        self._workflow = order_workflow(self._shop)
        self._tail = Tail(self._shop.ledger)
        self._ledger: list[Line] = []
        self._started: dict[str, Order] = {}
        self._began = time.monotonic()

    async def run(self) -> Figures:
        """Everything, in its order."""
        async with (
            open_engine(self._store, self._workflow, worker=False, poll_interval=0.25) as engine,
            trio.open_nursery() as nursery,
        ):
            self._engine = engine
            self._approver = Approver(engine, self._shop.mails)
            nursery.start_soon(_until_terminated)
            first = await self._hire(nursery, "worker 1")
            await first.ready()
            self._say(f"worker 1 is ready (process {first.pid})")
            nursery.start_soon(self._place_orders)
            nursery.start_soon(self._approver.work)
            await self._watch(lambda now: now.settled >= len(self._orders) // 2)
            killed_at = await self._kill(first)
            second = await self._hire(nursery, "worker 2")
            snapshot = await self._snapshot()
            await self._see_taken_over(second, killed_at)
            await self._watch(lambda now: now.settled == len(self._orders))
            status = await second.stop()
            self._say(f"worker 2 was told to stop (SIGTERM) and has drained, exit status {status}")
            runs = await self._runs()
            nursery.cancel_scope.cancel()
        return self._figures(runs, snapshot, killed_at, second)

    # --- what happens --------------------------------------------------------------------------------------

    async def _hire(self, nursery: trio.Nursery, name: str) -> WorkerProcess:
        worker = WorkerProcess(name, self._folder)
        await worker.start(nursery, self._store)
        return worker

    async def _place_orders(self) -> None:
        """Orders come in at their pace, whatever happens to workers."""
        begin = trio.current_time()
        for place, order in enumerate(self._orders):
            await trio.sleep_until(begin + place / ORDERS_PER_SECOND)
            key = f"{self._tag}/{order.order_id}"
            run = await self._engine.start(self._workflow, order, idempotency_key=key, tags=[self._tag])
            self._started[run.id] = order
        self._say(f"all {len(self._orders)} orders are placed")

    async def _kill(self, worker: WorkerProcess) -> float:
        """Kill it while it holds runs."""
        held = 0
        while not held and self._seconds() < GIVE_UP_AFTER:
            held = sum(run.lease is not None for run in await self._runs("running"))
        killed_at = await worker.kill()
        self._say(f"{worker.name} is killed (SIGKILL) while it holds {held} runs")
        return killed_at

    async def _snapshot(self) -> Snapshot:
        runs = await self._runs()
        snapshot = Snapshot(time.monotonic(), finished_steps(runs) | undone_steps(runs))
        self._say(f"worker 2 is started; {len(snapshot.finished)} steps are stored as finished or undone by now")
        return snapshot

    async def _see_taken_over(self, worker: WorkerProcess, killed_at: float) -> None:
        await worker.ready()
        self._say(f"{worker.name} is ready (process {worker.pid})")
        await self._watch(lambda now: bool(worker.recovered) or now.settled == len(self._orders))
        if worker.recovered:
            self._say(f"{worker.name} took over {worker.recovered[0] - killed_at:.2f} s after the kill")

    # --- how far it is -------------------------------------------------------------------------------------

    async def _watch(self, until: Callable[[Progress], bool]) -> None:
        """Show how far it is, until it is far enough, or is so late that it is time to look into the books."""
        while self._seconds() < GIVE_UP_AFTER:
            progress = await self._progress()
            self._view.update(progress)
            if until(progress):
                return
            await trio.sleep(_LOOKS_EVERY)

    async def _progress(self) -> Progress:
        self._read_ledger()
        counts: dict[str, int] = {}
        for status in _STATUSES:
            counts[status] = await self._engine.count(status=status, tags=[self._tag])
        recent = time.monotonic() - _RATE_OVER
        return Progress(
            seconds=self._seconds(),
            orders=len(self._orders),
            by_status=counts,
            effects=Counter(line.what for line in self._ledger if line.ok),
            retries=sum(not line.ok for line in self._ledger),
            approvals=len(self._approver.answered),
            steps_per_second=sum(line.ok and line.at > recent for line in self._ledger) / _RATE_OVER,
        )

    def _read_ledger(self) -> None:
        self._ledger += map(_decode, self._tail.lines())

    async def _runs(self, status: RunStatus | None = None) -> list[Run]:
        """The runs of this showing."""
        return (await self._engine.find(tags=[self._tag], status=status, limit=1000)).items

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _say(self, what: str) -> None:
        self._view.happened(self._seconds(), what)

    # --- the outcome ---------------------------------------------------------------------------------------

    def _figures(self, runs: list[Run], snapshot: Snapshot, killed_at: float, second: WorkerProcess) -> Figures:
        self._read_ledger()
        findings = check(self._started, runs, self._ledger, snapshot)
        statuses = Counter(run.status for run in runs)
        effects = [line for line in self._ledger if line.ok]
        steps = len(finished_steps(runs))
        recoveries = sum(run.recoveries for run in runs)
        taken = second.recovered
        return Figures(
            orders=len(self._orders),
            settled=sum(run.status in SETTLED for run in runs),
            done=statuses["done"],
            failed=statuses["failed"],
            compensated=statuses["compensated"],
            steps=steps,
            undone=len(undone_steps(runs)),
            retries=len(self._ledger) - len(effects),
            approvals=len(self._approver.answered),
            recoveries=recoveries,
            lost=len(findings.lost) + len(self._orders) - len(self._started),
            rerun=len(findings.rerun),
            effects=len(effects),
            repeated=repeated(effects),
            steps_per_second=steps / (effects[-1].at - effects[0].at) if len(effects) > 1 else 0.0,
            recovered_after_kill=taken[0] - killed_at if taken else None,
            recovered_after_ready=taken[0] - second.ready_at if taken else None,
            all_recovered_after_kill=taken[-1] - killed_at if taken else None,
            seconds=self._seconds(),
            problems=[*findings.problems, *self._oddities(runs, recoveries, second.status)],
        )

    def _oddities(self, runs: Sequence[Run], recoveries: int, status: int | None) -> Iterator[str]:
        if len(runs) != len(self._orders):
            yield f"{len(self._orders)} orders were to be placed, {len(runs)} runs are stored"
        if not recoveries:
            yield "no run had to be recovered: the killed worker was idle"
        if status:
            yield f"worker 2 ended with status {status}"
        for order in self._approver.refused:
            yield f"{order}: the token in the mail was refused though nobody had answered"


async def _until_terminated() -> None:
    """SIGTERM ends the demo as Ctrl-C does: the workers end with it."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        await anext(aiter(signals))
    raise StreamlineError("the demo was terminated")
