"""Real images: sources, the image store, pixels, batches, and the buffers of a set.

May import ``storage``, ``rng``, ``runtime`` and ``errors``.
"""
