"""What the templates have in common: a picture of the Shapes world, and what is usually done with it."""

from __future__ import annotations

import re
from typing import Any

from retrace_tests.workflows.graph import Graph, Link, Node

# Enlarges the 64 pixels of the Shapes world for the eye, without blurring them.
ENLARGE = 4.0
_CAPTION = re.compile(r"a (\w+) (\w+) (\w+) (?:on|(?:on|at) the (\w+) of) an? (\w+) background")


def words_of(caption: str) -> dict[str, Any]:
    """The inputs of ShapesPicture for a caption of its world."""
    match = _CAPTION.fullmatch(caption)
    if match is None:
        raise ValueError(f"caption must be one of the Shapes world, got {caption!r}; correct the template.")
    size, colour, shape, position, background = match.groups()
    return {"size": size, "colour": colour, "shape": shape, "position": position or "middle", "background": background}


class Scene(Graph):
    """A workflow that begins with a demo model, a picture, its prompt if that has a title, and its latent if `encoded`.

    Nodes that are added know what they usually get; settings say the rest or something else.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        caption: str,
        seed: int = 0,
        lcm: bool = False,
        shows: str = "The picture",
        about: str | None = "Source prompt: the picture as it is",
        encoded: bool = True,
    ) -> None:
        super().__init__(name)
        self.loader = self.add("LoadShapesModel", 0, kind=kind, lcm=lcm)
        self.model, self.clip, self.vae = (self.loader[slot] for slot in range(3))
        self.picture = self.add("ShapesPicture", 0, shows, **words_of(caption), seed=seed)
        self.source = None if about is None else self.prompt(about, self.picture[2])
        self.latent = self.add("VAEEncode", 1, pixels=self.picture, vae=self.vae) if encoded else None

    def prompt(self, title: str | None, text: str | Link, column: int = 1) -> Node:
        return self.add("CLIPTextEncode", column, title, text=text, clip=self.clip)

    def prompts(self, target: str, other: str = "Negative prompt") -> tuple[Node, Node]:
        """The target's prompt, and an empty one."""
        return self.prompt("Target prompt", target), self.prompt(other, "")

    def invert(self, title: str | None = None, kind: str = "Invert", column: int = 2, **settings: Any) -> Node:
        usual = {"model": self.model, "source": self.source, "latent": self.latent}
        return self.add(kind, column, title, **{**usual, **settings})

    def back(self, title: str | None, inversion: Node, column: int = 3, **settings: Any) -> Node:
        return self.add("Resample", column, title, model=self.model, inversion=inversion, **settings)

    def report(self, title: str | None, inversion: Node, back: Node, column: int = 4) -> Node:
        links = {"inversion": inversion, "model": self.model, "vae": self.vae, "reconstructed": back}
        return self.add("InversionReport", column, title, **links)

    def grown(self, title: str = "Grow the mask to cover the edge", column: int = 2, **settings: Any) -> Node:
        return self.add("GrowMask", column, title, **{"mask": self.picture[1], "expand": 4, **settings})

    def decode(self, latent: Node | Link, column: int, title: str = "Decode") -> Node:
        return self.add("VAEDecode", column, title, samples=latent, vae=self.vae)

    def look(self, column: int, title: str, *shown: Node | Link) -> None:
        """Save pictures side by side; a node stands for a latent, which is decoded."""
        first, *others = [self.decode(each, column)[0] if isinstance(each, Node) else each for each in shown]
        for picture in others:
            links = {"image1": first, "image2": picture}
            first = self.add("ImageStitch", column, "Side by side", **links, spacing_width=4)[0]
        enlarged = self.add("ImageScaleBy", column, image=first, upscale_method="nearest-exact", scale_by=ENLARGE)
        self.add("SaveImage", column + 1, title, images=enlarged, filename_prefix=f"retrace/{self.name}")

    def frame(self, titles: str, *counts: int) -> Graph:
        """Frame the columns from the left, so many under each title of those that " | " parts."""
        column = 0
        for title, count in zip(titles.split(" | "), counts, strict=True):
            self.groups.append((title, tuple(range(column, column + count))))
            column += count
        return self
