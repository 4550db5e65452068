"""The ``rfpp`` command."""
