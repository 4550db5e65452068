"""DVC's stages, a thin module each; run by ``python -m pipeline.stages.<stage>``."""
