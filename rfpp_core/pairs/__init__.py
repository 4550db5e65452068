"""Noise/image pairs: what determines them, and the store that commits them shard by shard.

May import ``images`` and the packages below it.
"""
