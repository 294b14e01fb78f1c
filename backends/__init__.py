"""Backends that make a Field from a model outside ComfyUI."""
