"""Attention of networks that no resolver knows: what is measured of those that one knows is what it says."""

import contextlib

import tiny_dits
import torch
from attending import forwards, injected, inverted, latent_of, plan, resampled, target_of
from helpers import refuses, relative

# Refiners of the picture come before the layers that their resolver counts; each has one here.
BEHIND_REFINERS = ("lumina", "zimage")


@contextlib.contextmanager
def measuring(pack):
    """No network has a resolver of its own."""
    users = [pack.module(name) for name in ("nodes.attending.attended", "nodes.editing.rf_edit")]
    measured, own = pack.module("nodes.attending.measured"), users[0].resolver_for
    try:
        for user in users:
            user.resolver_for = measured.Measured
        yield measured
    finally:
        for user in users:
            user.resolver_for = own


def check_measured_rows_are_those_of_every_resolver(pack):
    """Keys and values of the source in every layer: the same bits, at sizes that patches fill and that they do not."""
    for kind in tiny_dits.DITS:
        for size in ((4, 6),) if tiny_dits.TINY[kind].whole else ((4, 6), (7, 11)):
            latent = tiny_dits.latent(kind, batch=2, size=size, frames=2)
            model, inversion = inverted(pack, kind, latent=latent)
            layers = "block:1-99" if kind in BEHIND_REFINERS else "all"
            for cfg, together in ((1.0, None), (3.0, False)):
                with forwards(pack, together):
                    wanted = resampled(pack, model, inversion, kind, plan(pack), cfg)
                    with measuring(pack) as measured:
                        by_measure = resampled(pack, model, inversion, kind, plan(pack, layers=layers), cfg)
                assert torch.equal(by_measure, wanted), (kind, size, cfg, relative(by_measure, wanted))
            assert len(measured._READINGS[model.model.diffusion_model]) == 1, kind


def check_measuring_costs_three_forwards_once(pack):
    """A second run of the network at this size makes no more than one with a resolver of its own."""
    counts = []
    model, inversion = inverted(pack, "flux")
    network = model.model.diffusion_model

    def made():
        counts.clear()
        resampled(pack, model, inversion, "flux", plan(pack))
        return len(counts)

    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(network.register_forward_pre_hook(lambda *_: counts.append(1)).remove)
        known = made()
        with measuring(pack):
            assert [made(), made()] == [known + 3, known]


def check_what_cannot_be_measured_is_refused(pack):
    """Rows of a UNet are no patches; a forward that skips a block, before it is measured or after, is another one."""
    model, inversion = inverted(pack, "sd15")
    with measuring(pack):
        said = ("model must give each patch of the picture one row", "UNetModel", "leave attention out")
        refuses(lambda: resampled(pack, model, inversion, "sd15", plan(pack)), *said)
    model, inversion = inverted(pack, "flux")
    skipping = model.clone()
    skipping.set_model_patch_replace(lambda args, more: args, "dit", "single_block", 1)
    with measuring(pack):
        resampled(pack, model, inversion, "flux", plan(pack))
        said = ("model must make the same attention calls in every forward", "got 3 in place of 4")
        refuses(lambda: resampled(pack, skipping, inversion, "flux", plan(pack)), *said)


def check_every_node_of_attention_takes_measured_layers(pack):
    """Edits that keep the source's attention, inversion-free ones and a sampler of the host: as with a resolver."""
    kind = "sd3"
    model, source, latent = tiny_dits.model(kind), tiny_dits.conditioning(kind), latent_of(kind)
    pair = {"model": model, "source": source, "target": target_of(kind), "latent": latent, "steps": 4}
    (plan_of_all, *_) = injected(pack, model)

    def edits():
        for cached in ("cache", "beside"):
            yield pack.call("RFEdit", inject=2, features=cached, **pair)[0]["samples"]
        for node in ("InfEdit", "FlowEdit"):
            yield pack.call(node, attention=plan_of_all, **pair)[0]["samples"]

    wanted = list(edits())
    with measuring(pack):
        for number, (ours, theirs) in enumerate(zip(edits(), wanted, strict=True)):
            assert torch.equal(ours, theirs), (number, relative(ours, theirs))
