"""Schedules that once broke a law, as recorded choices.

What choices mean follows from the generator of programs, the director and the order of the engine's calls. After
a change of any of these they are other schedules than the ones that failed: they still must break nothing, and
the fault itself is held down by the test that is named beside it.
"""

REGRESSIONS: dict[str, list[int]] = {
    # tests/unit/test_decide_steering.py: a rewind undid an acknowledged cancellation whose holder had died
    "rewind undoes a cancellation": [
        *(46304, 0, 2, 1, 34, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1),
        *(0, 0, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 0, 2, 2, 0, 0, 0, 0, 96, 74, 0, 97, 32, 31, 0, 0),
        *(47, 38, 39, 33, 0),
    ],
    # the world's own law was wrong: a cancellation that found the run settled is none, though it was rewound since
    "a late no-op": [
        *(65162, 0, 1, 1, 27, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 0),
        *(1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 68, 16, 0, 0, 0, 0, 0, 0, 0, 46, 61, 0, 16, 80, 0, 64),
        *(0, 18, 0, 0),
    ],
    # two of the world's laws were wrong: the claim that takes a run over may find it overdue, and begin to undo it
    "a takeover of what is overdue": [
        *(7301, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0, 0, 0),
        *(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        *(0, 0, 0, 0, 0, 0, 63, 1),
    ],
}

FLOW_REGRESSIONS: dict[str, list[int]] = {}
