"""Raw networks ``(x (B, C, H, W), c_noise (B,), y (B,) or None) -> (B, C, H, W)``."""
