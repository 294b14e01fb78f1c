"""Attention of networks that no resolver knows: what is measured of those that one knows is what it says."""

import contextlib

import tiny_dits
import torch
from attending import inverted, plan, resampled
from helpers import refuses, relative

# Refiners of the picture come before the layers that their resolver counts; each has one here.
BEHIND_REFINERS = ("lumina", "zimage")


@contextlib.contextmanager
def measuring(pack):
    """No network has a resolver of its own."""
    attended, measured = pack.module("nodes.attending.attended"), pack.module("nodes.attending.measured")
    own, attended.resolver_for = attended.resolver_for, measured.Measured
    try:
        yield measured
    finally:
        attended.resolver_for = own


def check_measured_rows_are_those_of_every_resolver(pack):
    """Keys and values of the source in every layer: the same bits, at sizes that patches fill and that they do not."""
    for kind in tiny_dits.DITS:
        for size in ((4, 6),) if tiny_dits.TINY[kind].whole else ((4, 6), (7, 11)):
            latent = tiny_dits.latent(kind, batch=2, size=size, frames=2)
            model, inversion = inverted(pack, kind, latent=latent)
            plain, wanted = (resampled(pack, model, inversion, kind, each) for each in (None, plan(pack)))
            with measuring(pack) as measured:
                layers = "block:1-99" if kind in BEHIND_REFINERS else "all"
                measured_edit = resampled(pack, model, inversion, kind, plan(pack, layers=layers))
                assert torch.equal(measured_edit, wanted), (
                    kind,
                    size,
                    relative(measured_edit, wanted),
                    relative(plain, wanted),
                )
                assert len(measured._READINGS[model.model.diffusion_model]) == 1, kind


def check_measuring_costs_three_forwards_once(pack):
    """A second run of the network at this size makes no more than one with a resolver of its own."""
    counts = []
    model, inversion = inverted(pack, "flux")
    network = model.model.diffusion_model

    def forwards():
        counts.clear()
        resampled(pack, model, inversion, "flux", plan(pack))
        return len(counts)

    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(network.register_forward_pre_hook(lambda *_: counts.append(1)).remove)
        known = forwards()
        with measuring(pack):
            assert [forwards(), forwards()] == [known + 3, known]


def check_what_cannot_be_measured_is_refused(pack):
    """Rows of a UNet are no patches, and calls of another number are no longer those that were measured."""
    model, inversion = inverted(pack, "sd15")
    with measuring(pack):
        refuses(
            lambda: resampled(pack, model, inversion, "sd15", plan(pack)),
            "model must give each patch of the picture one row", "UNetModel", "leave attention out",
        )  # fmt: skip
