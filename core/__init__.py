"""What inversion and restoration stand on: the denoiser, noise levels, the one walk, and the registry of files."""
