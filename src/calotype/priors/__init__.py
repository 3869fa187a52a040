"""Closed-form denoisers: the posterior mean of the clean image under a fitted Gaussian model, before any training."""
