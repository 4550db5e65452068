"""The path between data and noise, preconditioning, and networks.

Imports nothing of the project but the type of its tables.
"""
