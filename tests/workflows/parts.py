"""What the templates have in common."""

from __future__ import annotations

from typing import NamedTuple

from retrace_tests.workflows.graph import Graph, Link, Node

# Enlarges the 64 pixels of the Shapes world for the eye, without blurring them.
ENLARGE = 4.0


class Start(NamedTuple):
    """What every template begins with."""

    picture: Node
    model: Node
    source: Node
    latent: Node

    @property
    def vae(self) -> Link:
        return self.model[2]


def start(graph: Graph, kind: str, **words: object) -> Start:
    model = graph.add("LoadShapesModel", 0, kind=kind)
    picture = graph.add("ShapesPicture", 0, "The picture", **words)
    source = graph.add("CLIPTextEncode", 1, "Source prompt: the picture as it is", text=picture[2], clip=model[1])
    latent = graph.add("VAEEncode", 1, pixels=picture[0], vae=model[2])
    return Start(picture, model, source, latent)


def prompt(graph: Graph, start: Start, column: int, title: str, text: str) -> Node:
    return graph.add("CLIPTextEncode", column, title, text=text, clip=start.model[1])


def decode(graph: Graph, start: Start, column: int, title: str, latent: Link) -> Node:
    return graph.add("VAEDecode", column, title, samples=latent, vae=start.vae)


def side_by_side(graph: Graph, column: int, title: str, *pictures: Link) -> Node:
    shown = pictures[0]
    for picture in pictures[1:]:
        shown = graph.add("ImageStitch", column, "Side by side", image1=shown, image2=picture, spacing_width=4)[0]
    enlarged = graph.add("ImageScaleBy", column, image=shown, upscale_method="nearest-exact", scale_by=ENLARGE)
    return graph.add("SaveImage", column + 1, title, images=enlarged[0], filename_prefix=f"retrace/{graph.name}")
