"""The mathematics of diffusion. Latents and pixels are treated alike."""
