"""For tests of programs that use the engine, and of stores written elsewhere."""

from streamline_trio.testing._crash import crash
from streamline_trio.testing._fake_answers import Asked, NotGiven, WentTo
from streamline_trio.testing._fake_composition import Emitted
from streamline_trio.testing._fake_context import FakeContext
from streamline_trio.testing._faulty_store import FaultyStore
from streamline_trio.testing._mishaps import CrashAt, DeliverTwice, FailCall, LoseLeaseAt, Mishap, MishapMissed
from streamline_trio.testing._play import parked, play, sweep
from streamline_trio.testing._stage import crash_here, lose_lease_here, open_stage
from streamline_trio.testing._time import run
from streamline_trio.testing._world import World
from streamline_trio.testing._world_choices import Chooser
from streamline_trio.testing._world_run import SimulationFailed, replay, simulate
from streamline_trio.testing._world_scenario import Scenario, Start
from streamline_trio.testing._world_summary import Summary
from streamline_trio.testing._wrapped_store import WrappedStore
from streamline_trio.testing.conformance import conformance_tests

__all__ = [
    "Asked",
    "Chooser",
    "CrashAt",
    "DeliverTwice",
    "Emitted",
    "FailCall",
    "FakeContext",
    "FaultyStore",
    "LoseLeaseAt",
    "Mishap",
    "MishapMissed",
    "NotGiven",
    "Scenario",
    "SimulationFailed",
    "Start",
    "Summary",
    "WentTo",
    "World",
    "WrappedStore",
    "conformance_tests",
    "crash",
    "crash_here",
    "lose_lease_here",
    "open_stage",
    "parked",
    "play",
    "replay",
    "run",
    "simulate",
    "sweep",
]
