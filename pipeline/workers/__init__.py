"""Processes: the worker pool, what a worker does, the Prefect flow, the launcher of trainings."""
