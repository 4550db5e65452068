"""Training: couplings, times, losses, the trainer, and its processes.

May import ``images``, ``model`` and the packages below them; knows neither stores nor params.
"""
