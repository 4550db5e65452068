"""Params: their schema (one module per section), rules across sections, and what is built of them.

``build`` alone knows both the params and the packages that they configure.
"""
