"""Nodes that take a latent into the noise and back, each beside its run."""
