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

FLOW_REGRESSIONS: dict[str, list[int]] = {
    # tests/crash/test_shared_starts.py: a commit of another process took the starter of a draft for vanished
    "a signal ends a start that is under way": [
        *(9023, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0),
        *(0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        *(0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0),
        *(0, 0, 0, 0, 0, 0, 75, 0, 0, 0, 0, 0, 0, 0, 79, 0, 71, 1, 9, 0, 0, 0),
    ],
    # tests/crash/test_shared_starts.py: a wish that others had dropped was told as a refusal
    "a start that was given up is told that all is full": [
        *(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        *(0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        *(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 23, 49, 1, 35, 1, 0, 0, 0, 0, 58, 0, 0, 0, 111, 0, 1),
        *(72, 37, 0, 1, 55, 3, 0, 0, 0, 1, 86, 47),
    ],
    # tests/crash/test_shared_starts.py: an insert in doubt was resolved by the start id that all workers shared
    "two workers take one firing for theirs": [
        *(64285, 0, 1, 0, 1, 1, 2, 0, 3, 2, 1, 13, 0, 2, 19, 2, 7, 0, 1, 0, 3, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1),
        *(0, 1, 0, 0, 2, 1, 0, 0, 1, 0, 0, 2, 3, 0, 1, 0, 2, 0, 0, 0, 2, 0, 2, 1, 2, 0, 2, 2, 1, 1, 0, 2, 1),
        *(2, 2, 1, 0, 1, 2, 0, 3, 0, 1, 0, 0, 0, 2, 0, 1, 3, 2, 1, 1, 2, 0, 3, 0, 0, 2, 3, 0, 2, 0, 1, 2, 0),
        *(1, 0, 1, 2, 2, 0, 0, 1, 0, 2, 1, 0, 2, 1, 1, 1, 0, 1, 1, 2, 0, 0, 100, 40, 39, 34, 13, 30, 9, 1, 9),
        *(4, 90, 1, 108, 14, 78, 5, 50, 29, 42, 4, 105, 77, 59, 77, 0, 38, 38, 12, 1, 42, 12, 1, 23, 0, 77),
        *(2, 28, 1, 47, 19, 0, 35, 65, 0, 92, 2, 2, 15, 57, 6, 1, 7, 0, 71, 6, 0, 75, 10, 34, 21, 48, 12, 61),
        *(1, 19, 106, 69, 1, 1, 2, 31, 86, 1, 85, 1, 19, 0, 53, 23, 1, 16, 45, 45, 0, 82, 2, 65, 0, 8, 0, 1),
        *(83, 5, 26, 5, 57, 1, 3, 0, 72, 0, 9, 2, 30, 74, 1, 0, 2, 32, 60, 1, 16, 1, 28, 0, 27, 1, 69, 1, 3),
        *(2, 25, 3, 98, 2, 2, 33, 104, 1, 16, 1, 62, 0, 4, 1, 0, 0, 99, 106, 80, 5, 73, 0, 9, 1, 0, 1, 41),
        *(38, 3, 1, 18, 7, 33, 50, 17, 6, 87, 2, 89, 2, 5, 83, 1, 104, 2, 33),
    ],
}
"""Of worlds of flow control."""
