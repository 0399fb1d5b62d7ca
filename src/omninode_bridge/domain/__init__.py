"""What a stamp, a workflow, an event and a total are: pure values and functions.

Nothing in this package reads a clock, draws a random number, does I/O or logs; time, ids and randomness
arrive as arguments. Only the standard library's value types and msgspec are imported.
"""
