"""What a stage works in: pixels, or the latents of an autoencoder."""
