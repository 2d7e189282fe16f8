"""For tests of programs that use the engine, and of stores written elsewhere."""

from streamline_trio.testing._crash import crash
from streamline_trio.testing._faulty_store import FaultyStore
from streamline_trio.testing._time import run
from streamline_trio.testing._world import World
from streamline_trio.testing._world_choices import Chooser
from streamline_trio.testing._world_run import SimulationFailed, replay, simulate
from streamline_trio.testing._world_scenario import Scenario, Start
from streamline_trio.testing._world_summary import Summary
from streamline_trio.testing._wrapped_store import WrappedStore
from streamline_trio.testing.conformance import conformance_tests

__all__ = [
    "Chooser",
    "FaultyStore",
    "Scenario",
    "SimulationFailed",
    "Start",
    "Summary",
    "World",
    "WrappedStore",
    "conformance_tests",
    "crash",
    "replay",
    "run",
    "simulate",
]
