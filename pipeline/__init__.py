"""DVC stages and the Prefect flow: what runs when, and how it survives interruption."""
