"""Training: couplings, times, losses, the trainer, and its processes.

May import ``images``, ``model`` and what lies below; knows neither stores nor params.
"""
