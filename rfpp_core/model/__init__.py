"""The path between data and noise, preconditioning, and networks.

Imports nothing of the project.
"""
