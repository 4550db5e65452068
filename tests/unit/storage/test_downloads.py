import hashlib

import pytest

from rfpp_core.errors import UserError
from rfpp_core.storage import downloads


def test_weights_offline(tmp_path, monkeypatch):
    """The file, where it comes from, and the param that takes a path."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "source").write_bytes(b"weights")
    here = downloads.Published("A net", f"file://{tmp_path}/absent-net.pt", "0" * 64, "a.path")
    said = (r"absent-net.pt is not in .* cannot be downloaded: .*A net: absent-net.pt comes from "
            r"file:.*; a.path takes a path")  # fmt: skip
    with pytest.raises(UserError, match=said):
        downloads.fetch(here, None)
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())
    with pytest.raises(UserError, match=r"gone.pt is missing .*a.path takes a path"):
        downloads.fetch(here, str(tmp_path / "gone.pt"))
    digest = hashlib.sha256(b"weights").hexdigest()
    there = downloads.Published("A net", f"file://{tmp_path}/source", digest, "a.path")
    assert downloads.fetch(there, None).read_bytes() == b"weights"  # downloaded
    downloads.fetch(there, None).write_bytes(b"damaged")
    with pytest.raises(UserError, match="has sha256"):
        downloads.fetch(there, None)
    other = there._replace(url=f"file://{tmp_path}/source", sha256="1" * 64)
    downloads.cache().joinpath("source").unlink()
    with pytest.raises(UserError, match="cannot be downloaded: invalid hash"):
        downloads.fetch(other, None)
