"""The mathematics of diffusion. Nothing here knows latents from pixels."""
