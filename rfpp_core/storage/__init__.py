"""Files: atomic writes, digests, locks, checkpoints, Zarr arrays, downloads.  Knows no other
package but ``errors``.
"""
