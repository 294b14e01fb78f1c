"""Every network family against diffusers' own pipelines and schedulers."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from retrace.backends.diffusers import Cond, DiffusersModel, pack, picture_ids, unpack
from retrace.inversion import Euler, invert, relative_error, replay, walk
from retrace_tests.backends import tiny

FAMILIES = sorted(tiny.FAMILIES)


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny.model(request.param)


# One step of a scheduler from x_t says what it takes the clean latent to be.


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("timestep", [0, 40, 500, 999])
def test_denoised_is_what_ddim_predicts(prediction, timestep):
    scheduler = tiny.ddim(prediction)
    network = tiny.unet()
    model = DiffusersModel(network, tiny.vae(), tiny.encode_text, scheduler)
    x, cond = tiny.latent(), tiny.cond(rows=2)
    denoiser = model.denoiser(x, cond)
    sigma = model.schedule(8, 12).table[timestep]

    preserved = x / (1 + sigma**2) ** 0.5
    out = network(preserved.float(), timestep, encoder_hidden_states=cond.tokens).sample
    scheduler.set_timesteps(1000)
    expected = scheduler.step(out.double(), timestep, preserved).pred_original_sample
    assert relative_error(denoiser(x, sigma), expected) < 1e-6


# Whole pipelines: same start, same grid, same prompts, Euler. They check conditioning, guidance and packing.


def pipeline(model):
    """The pipeline of a family round the parts of a model."""
    network, scheduler, rest = model.network, tiny.FAMILIES[model.name][1](), [None] * 6
    if model.name == "sd3":
        return StableDiffusion3Pipeline(network, scheduler, model.vae, *rest)
    if model.name == "flux":
        return FluxPipeline(scheduler, model.vae, *rest[:4], network)
    # Euler in the variance-exploding space is DDIM in the preserving one (same path, another scale).
    scheduler = DDIMScheduler.from_config(
        scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    if model.name == "sdxl":
        pipe = StableDiffusionXLPipeline(model.vae, *rest[:4], network, scheduler, add_watermarker=False)
        # It asks the second text encoder for the width of the pooled vector.
        pipe._get_add_time_ids = lambda *three, **_: torch.tensor([sum(three, ())]).float()
        return pipe
    return StableDiffusionPipeline(model.vae, *rest[:2], network, scheduler, *rest[:2], requires_safety_checker=False)


@pytest.mark.parametrize("family", [*FAMILIES, "flux, not distilled"])
def test_samples_like_its_pipeline(family):
    name = family.split(",")[0]
    model = tiny.model(name, tiny.flux(False) if family != name else None)
    cond, uncond = tiny.cond(0, 2), tiny.cond(1, 2)
    grid, noise, given = model.schedule(8, 12).grid(10), tiny.latent(seed=9), {"prompt_embeds": cond.tokens}
    if not name.startswith("sd15"):
        given["pooled_prompt_embeds"] = cond.pooled
    if name == "flux":
        denoiser = model.denoiser(noise, cond, guidance=3.5)
        given |= {"latents": pack(noise).float(), "guidance_scale": 3.5}
    else:
        denoiser = model.denoiser(noise, cond, uncond, 2.5)
        negative = {"prompt_embeds": uncond.tokens, "pooled_prompt_embeds": uncond.pooled}
        given |= {f"negative_{key}": negative[key] for key in given}
        given |= {"latents": noise.float(), "guidance_scale": 2.5}
    if name == "sd3":
        given["sigmas"] = torch.linspace(1.0, 0.1, 10).tolist()
    pipe = pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    size = {"height": model.scale * 8, "width": model.scale * 12}
    out = pipe(**given, **size, num_inference_steps=10, output_type="latent", return_dict=False)[0]
    start = noise if model.space == "flow" else noise * (1 + grid[-1] ** 2) ** 0.5
    ours = walk(denoiser, start, grid[::-1], Euler())
    assert relative_error(ours, (unpack(out, 8, 12) if name == "flux" else out).double()) < 2e-5


def test_packing_is_undone_and_positions_follow_it():
    x = torch.arange(4 * 6 * 8.0).reshape(1, 4, 6, 8)
    tokens = pack(x)
    assert tokens.shape == (1, 12, 16)
    assert torch.equal(unpack(tokens, 6, 8), x)
    ids = picture_ids(3, 4)
    assert ids.tolist()[5] == [0, 1, 1]
    # Token 5 holds the 2 by 2 cell in row 1, column 1.
    assert torch.equal(tokens[0, 5].reshape(4, 2, 2), x[0, :, 2:4, 2:4])


# What a denoiser promises.


def test_rows_of_a_batch_do_not_mix_and_one_prompt_serves_all(model):
    x, conds, one = tiny.latent(), tiny.cond(0, 2), tiny.cond(0, 1)
    before, together = x.clone(), model.denoiser(x, conds)(x, 0.7)
    for row in (slice(0, 1), slice(1, 2)):
        alone = model.denoiser(x[row], Cond(conds.tokens[row], conds.pooled[row]))(x[row], 0.7)
        assert relative_error(together[row], alone) < 1e-5
    two = Cond(one.tokens.repeat(2, 1, 1), one.pooled.repeat(2, 1))
    assert torch.equal(model.denoiser(x, one)(x, 0.7), model.denoiser(x, two)(x, 0.7))
    assert together.dtype == torch.float64 and torch.equal(x, before)


def test_cfg_is_linear_in_the_two_predictions(model):
    x = tiny.latent()
    cond, uncond = tiny.cond(0), tiny.cond(1)
    plain, base = model.denoiser(x, cond)(x, 0.7), model.denoiser(x, uncond)(x, 0.7)
    guided = model.denoiser(x, cond, uncond, cfg=3.0)(x, 0.7)
    assert relative_error(guided, base + 3.0 * (plain - base)) < 1e-12
    assert torch.equal(model.denoiser(x, cond, uncond, cfg=1.0)(x, 0.7), plain)
    assert not torch.allclose(plain, base, rtol=1e-3)


def test_unconditional_embedding_can_be_exchanged(model):
    x, cond, uncond, other = tiny.latent(), tiny.cond(0), tiny.cond(1), tiny.cond(2)
    denoiser = model.denoiser(x, cond, uncond, cfg=3.0)
    expected = model.denoiser(x, cond, Cond(other.tokens, uncond.pooled), cfg=3.0)(x, 0.7)
    assert torch.equal(denoiser.with_embedding(other.tokens)(x, 0.7), expected)
    assert not torch.equal(denoiser(x, 0.7), expected)
    with pytest.raises(TypeError, match="embedding be exchanged"):
        model.denoiser(x, cond).with_embedding(other.tokens)


@pytest.mark.parametrize("method", ["euler", "midpoint", "fireflow", "ddim"])
def test_inversion_is_finite_and_closes_as_the_grid_gets_finer(model, method):
    # A random network is no denoiser, so only the trend is asserted, up to a moderate sigma.
    x0 = tiny.latent(1)
    denoiser = model.denoiser(x0, tiny.cond())
    errors = []
    for steps in (4, 32):
        grid = tuple(0.5 * i / steps for i in range(steps + 1))
        record = invert(denoiser, x0, grid, steps, method)
        assert torch.isfinite(record.x).all() and record.dtype == torch.float64
        errors.append(relative_error(replay(record, denoiser), x0))
    assert errors[1] < 0.5 * errors[0]


# VAE.


def test_encode_takes_the_mean_with_shift_and_scale_and_decode_undoes_it(model):
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(2, 3, model.multiple * 4, model.multiple * 6, generator=generator)
    mean, encoded = model.vae.encode(pixels * 2 - 1).latent_dist.mean, model.encode(pixels)
    shift = 0.1 if model.space == "flow" else 0.0
    assert encoded.dtype == torch.float64 and torch.equal(encoded, (mean.double() - shift) * 0.4)
    expected = (model.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(model.decode(encoded), expected, atol=1e-5)


# Misuse.


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"unet": {"in_channels": 9}}, "unet must have as many input as output channels, got 9 and 4; use a text-to"),
        ({"unet": {"time_cond_proj_dim": 8}}, "distilled for a guidance input .*; use the model"),
        ({"network": tiny.vae}, "network must be a UNet2D.*, got AutoencoderKL; use an SD1.5"),
        ({"scheduler": tiny.flow}, "scheduler must fit the network, got FlowMatch.* for UNet2D"),
        ({"scheduler": lambda: tiny.ddim("odd")}, "prediction_type must be .*, got 'odd'; correct"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, sentence):
    network = parts.get("network", lambda: tiny.unet(**parts.get("unet", {})))()
    with pytest.raises((ValueError, TypeError), match=sentence):
        DiffusersModel(network, tiny.vae(), tiny.encode_text, parts.get("scheduler", tiny.ddim)())


def test_what_a_model_cannot_take_is_refused(model):
    x, cond = tiny.latent(), tiny.cond()
    refused = [
        ((tiny.latent(channels=6), cond), r"latent must have shape \(batch, 4, height, width\), got .*; encode"),
        ((x, cond, None, 4.0), "cfg must be 1 without a negative prompt, got 4.0; give one"),
        ((x, cond, tiny.cond(1), float("nan")), "cfg must be a finite number, got nan; 1 switches"),
        ((x, tiny.cond(rows=3)), "conditioning must have 1 or 2 rows, got 3; give one"),
    ]
    if model.space == "flow":
        refused += [((tiny.latent(height=7), cond), "height and width must be multiples of 2, got 7 and 12; crop")]
    if not model.name.startswith("sd15"):
        refused += [((x, tiny.cond(pooled=False)), "must have a pooled vector for this model, got none; use")]
    for given, sentence in refused:
        with pytest.raises(ValueError, match=sentence):
            model.denoiser(*given)
    with pytest.raises(ValueError, match=r"picture must have shape .*multiples of \d+, got \(1, 3, 33, 32\); crop"):
        model.encode(torch.rand(1, 3, 33, 32))


def test_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model must be a folder in the diffusers layout, got .*; give such a folder"):
        DiffusersModel.from_folder(tmp_path)
    index = '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ValueError, match="model must be a complete pipeline, got .*; repair it: .*config.json"):
        DiffusersModel.from_folder(tmp_path)
