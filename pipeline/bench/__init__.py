"""Benchmarks, a module each: figures beside their reference, measured in one process in turns.

    BENCHES[name](...) -> list[Figure]        ``rfpp bench NAME`` prints and writes them

May import all of the pipeline but ``cli``.
"""
