"""Files: atomic writes, digests, locks, checkpoints, Zarr arrays, downloads.  Imports ``errors``
alone."""
