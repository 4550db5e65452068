"""Foreign files: checkpoints, pair archives, ONNX.  May import every other package of the core."""
