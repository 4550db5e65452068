"""Sampling: solvers, time grids, samplers, and a trained flow.

May import ``model`` and ``rng``.
"""
