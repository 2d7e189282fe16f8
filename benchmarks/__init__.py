"""What the engine costs, measured beside the same durable writes without it: `python -m benchmarks`.

Nothing here asserts a time: the figures are for the machine that they are printed with.
"""
