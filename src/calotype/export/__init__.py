"""A model in the layouts of others: ONNX, diffusers, a page for browsers."""
