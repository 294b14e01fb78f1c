"""Backends that make a Denoiser from a model outside ComfyUI."""
