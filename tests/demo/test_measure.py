"""The measurement: grids, choice of scenes, its own loop against an analytic denoiser, and faults it must see."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retrace.demo import measure, models, world


def test_unseen_scenes_are_held_out_and_distinct():
    scenes = measure.unseen(200)
    assert len(set(scenes)) == 200 and all(scene.held_out for scene in scenes)
    assert measure.unseen(200) == scenes and measure.unseen(200, seed=1) != scenes
    assert measure.unseen(50) == scenes[:50]
    with pytest.raises(ValueError, match="count must be between 1 and"):
        measure.unseen(10_000)


def test_levels_of_eps_are_the_trained_ones_and_those_of_flow_are_shifted():
    sigmas, timesteps = measure.levels("eps", 4)
    assert timesteps == [999, 666, 333, 0] and sigmas[-1] == 0.0
    # The ends of SD1.5's schedule, as every implementation has them.
    assert sigmas[0] == pytest.approx(14.6146, abs=1e-4) and sigmas[3] == pytest.approx(0.0292, abs=1e-4)
    sigmas, timesteps = measure.levels("flow", 4)
    assert sigmas == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert timesteps == pytest.approx([1000, 900, 750, 500])


def test_verdicts_see_each_fault():
    scene = world.Scene("big", "red", "square", "left", "white")
    pictures, _ = world.render([scene] * 6, seed=1)
    wrong = {"colour": "blue", "background": "cyan", "shape": "ring", "size": "small", "position": "top"}
    found = measure.verdicts([scene, *(scene.changed(**{word: wrong[word]}) for word in wrong)], pictures)
    wrong = {title: (~right).nonzero()[0].tolist() for title, right in found.items()}
    assert wrong == {"object": [1], "background": [2], "shape": [3], "size": [4], "position": [5]}


def test_psnr_is_that_of_the_error():
    class Off(torch.nn.Module):
        """Gives every picture back 5 grey levels too bright."""

        def encode(self, pixels):
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=pixels))

        def decode(self, latents):
            return SimpleNamespace(sample=latents + 5 / 127.5)

    scenes = [world.Scene("big", "red", "circle", "middle", "blue")] * 2
    wanted = 20 * np.log10(255 / 5)
    # Nothing is clipped in these colours.
    assert measure.vae_psnr(Off(), scenes, seed=0) == pytest.approx([wanted, wanted], abs=1e-3)


@pytest.mark.parametrize("kind", models.KINDS)
def test_noise_of_a_picture_does_not_depend_on_the_batch(kind):
    pytest.importorskip("diffusers")
    model = models.load(kind)
    captions = [scene.caption for scene in measure.unseen(3)]
    three = measure.sample(model, captions, 2, 4.0, 5)
    two = measure.sample(model, captions[:2], 2, 4.0, 5)
    # Batches of other sizes round differently in the last bit, which may flip a grey level.
    assert np.abs(three[:2].astype(int) - two).max() <= 1
    assert np.abs(three[:2].astype(int) - measure.sample(model, captions[:2], 2, 4.0, 6)).max() > 20


@pytest.mark.parametrize("kind", models.KINDS)
def test_the_loop_and_guidance_are_exact_on_a_gaussian(kind, monkeypatch):
    # Data N(mean, 1) in every value: denoised is linear in x, so that the end of each Euler step is known.
    class Exact:
        """The network of such data; the mean is 2 with a caption and 1 without."""

        def __call__(self, x, *arguments):
            times = arguments[0] if kind == "eps" else arguments[2]
            mean = torch.tensor([2.0, 1.0]).repeat_interleave(len(x) // 2).view(-1, 1, 1, 1)
            if kind == "eps":
                sigma = dict(zip(*reversed(measure.levels("eps", 5))))[float(times[0])]
                x = x * (1 + sigma**2) ** 0.5
                out = sigma / (1 + sigma**2) * (x - mean)
            else:
                sigma = float(times[0]) / 1000
                spread = (1 - sigma) ** 2 + sigma**2
                noise = sigma / spread * (x - (1 - sigma) * mean)
                out = noise - mean - (1 - sigma) / spread * (x - (1 - sigma) * mean)
            return SimpleNamespace(sample=out)

    model = models.ShapesModel(kind, Exact(), None, None, None)
    monkeypatch.setattr(models, "encode_text", lambda model, prompts: (None, None))
    monkeypatch.setattr(measure, "decode", lambda model, x: x.numpy())
    end = measure.sample(model, ["", ""], 5, 3.0, 0)

    sigmas, _ = measure.levels(kind, 5)
    x = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0)).double()
    x = x * (1 + sigmas[0] ** 2) ** 0.5 if kind == "eps" else x
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        kept = 1.0 if kind == "eps" else 1 - sigma
        gain = kept / (kept**2 + sigma**2)
        guided = [mean + gain * (x - kept * mean) for mean in (1.0, 2.0)]
        denoised = guided[0] + 3.0 * (guided[1] - guided[0])
        x = x + (sigma_next - sigma) * (x - denoised) / sigma
    assert np.abs(end - x.numpy()).max() < 1e-4
