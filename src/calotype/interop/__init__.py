"""Weights in the layouts of diffusers and transformers, and of MiniLM."""
