"""Retrace: exact inversion of pictures and clips into a model's noise, and editing from there.

This file is read by three loaders (ComfyUI under the folder's path, pytest as a package root, pip as
`retrace`), so it imports nothing at module level: whatever it imported would have to work in all three.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> object:
    """Return the extension that ComfyUI asks for when it loads the pack."""
    from .nodes import RetraceExtension

    return RetraceExtension()
