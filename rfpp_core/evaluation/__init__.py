"""Evaluation: feature nets, distances between sets of images, properties of a flow.

May import ``sampling``, ``images`` and the packages below them.
"""
