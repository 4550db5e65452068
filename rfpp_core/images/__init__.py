"""Real images: sources, the image store, pixels, batches, and where a set is held.

May import ``storage``, ``rng``, ``runtime`` and ``errors``.
"""
