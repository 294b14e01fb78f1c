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


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_denoised_is_one_flow_step_to_zero(family):
    model = tiny.model(family)
    x, cond = tiny.latent(), tiny.cond(rows=2)
    denoiser = model.denoiser(x, cond)
    scheduler = tiny.flow(shift=1.0)
    scheduler.set_timesteps(sigmas=[0.6])
    # The velocity is what the denoiser's derivative must be; a step to 0 with it ends at denoised.
    velocity = denoiser.derivative(x, 0.6)
    expected = scheduler.step(velocity, scheduler.timesteps[0], x).prev_sample
    assert relative_error(denoiser(x, 0.6), expected.double()) < 1e-6


# Whole pipelines: same start, same grid, same prompts, Euler. They check conditioning, guidance and packing.


def euler_down(model, x, grid, cond, uncond, cfg, guidance=1.0):
    denoiser = model.denoiser(x, cond, uncond, cfg, guidance)
    return walk(denoiser, x, tuple(reversed(grid)), Euler())


def discrete_pipeline_case(pipe, model, sampled, **arguments):
    """Euler in the variance-exploding space is DDIM in the preserving one (same path, another scale)."""
    steps = 10
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    grid = model.schedule(8, 12).grid(steps)
    top = grid[-1]
    noise = tiny.latent(seed=9)
    out = pipe(
        latents=noise.float(),
        num_inference_steps=steps,
        guidance_scale=2.5,
        height=model.scale * 8,
        width=model.scale * 12,
        output_type="latent",
        return_dict=False,
        **arguments,
    )[0]
    assert relative_error(sampled(noise * (1 + top**2) ** 0.5, grid), out.double()) < 2e-5


@pytest.mark.parametrize("family", ["sd15", "sd15-v"])
def test_sd15_samples_like_its_pipeline(family):
    model = tiny.model(family)
    network, scheduler = (build() for build in tiny.FAMILIES[family])
    pipe = StableDiffusionPipeline(model.vae, None, None, network, scheduler, None, None, requires_safety_checker=False)
    cond, uncond = tiny.cond(0, 2), tiny.cond(1, 2)
    discrete_pipeline_case(
        pipe,
        model,
        lambda x, grid: euler_down(model, x, grid, cond, uncond, 2.5),
        prompt_embeds=cond.tokens,
        negative_prompt_embeds=uncond.tokens,
    )


def test_sdxl_samples_like_its_pipeline():
    model = tiny.model("sdxl")
    pipe = StableDiffusionXLPipeline(
        model.vae, None, None, None, None, tiny.unet_sdxl(), tiny.ddim(), add_watermarker=False
    )
    cond, uncond = tiny.cond(0, 2), tiny.cond(1, 2)
    # The pipeline asks the second text encoder for the width of the pooled vector.
    pipe._get_add_time_ids = lambda size, crop, target, dtype, **_: torch.tensor([[*size, *crop, *target]], dtype=dtype)
    discrete_pipeline_case(
        pipe,
        model,
        lambda x, grid: euler_down(model, x, grid, cond, uncond, 2.5),
        prompt_embeds=cond.tokens,
        negative_prompt_embeds=uncond.tokens,
        pooled_prompt_embeds=cond.pooled,
        negative_pooled_prompt_embeds=uncond.pooled,
    )


def test_sd3_samples_like_its_pipeline():
    model = tiny.model("sd3")
    pipe = StableDiffusion3Pipeline(tiny.sd3(), tiny.flow(), model.vae, *[None] * 6)
    pipe.set_progress_bar_config(disable=True)
    cond, uncond = tiny.cond(0, 2), tiny.cond(1, 2)
    grid = model.schedule(8, 12).grid(10)
    noise = tiny.latent(seed=9)
    out = pipe(
        prompt_embeds=cond.tokens,
        negative_prompt_embeds=uncond.tokens,
        pooled_prompt_embeds=cond.pooled,
        negative_pooled_prompt_embeds=uncond.pooled,
        latents=noise.float(),
        sigmas=torch.linspace(1.0, 0.1, 10).tolist(),
        num_inference_steps=10,
        guidance_scale=2.5,
        height=model.scale * 8,
        width=model.scale * 12,
        output_type="latent",
        return_dict=False,
    )[0]
    assert relative_error(euler_down(model, noise, grid, cond, uncond, 2.5), out.double()) < 2e-5


@pytest.mark.parametrize("distilled", [True, False])
def test_flux_samples_like_its_pipeline(distilled):
    scheduler = tiny.FAMILIES["flux"][1]()
    network = tiny.flux(distilled)
    model = DiffusersModel(network, tiny.vae(shift=0.1), tiny.encode_text, scheduler)
    pipe = FluxPipeline(scheduler, model.vae, None, None, None, None, network)
    pipe.set_progress_bar_config(disable=True)
    cond = tiny.cond(0, 2)
    noise = tiny.latent(seed=9)
    height, width = model.scale * 8, model.scale * 12
    out = pipe(
        prompt_embeds=cond.tokens,
        pooled_prompt_embeds=cond.pooled,
        latents=pack(noise).float(),
        num_inference_steps=10,
        guidance_scale=3.5,
        height=height,
        width=width,
        output_type="latent",
        return_dict=False,
    )[0]
    ours = euler_down(model, noise, model.schedule(8, 12).grid(10), cond, None, 1.0, guidance=3.5)
    assert relative_error(ours, unpack(out, 8, 12).double()) < 2e-5


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


def test_rows_of_a_batch_do_not_mix(model):
    x = tiny.latent()
    conds = tiny.cond(0, 2)
    together = model.denoiser(x, conds)(x, 0.7)
    for row in range(2):
        own = Cond(conds.tokens[row : row + 1], conds.pooled[row : row + 1])
        alone = model.denoiser(x[row : row + 1], own)(x[row : row + 1], 0.7)
        assert relative_error(together[row : row + 1], alone) < 1e-5


def test_one_prompt_serves_the_whole_batch(model):
    x = tiny.latent()
    one = tiny.cond(0, 1)
    two = Cond(one.tokens.repeat(2, 1, 1), one.pooled.repeat(2, 1))
    assert torch.equal(model.denoiser(x, one)(x, 0.7), model.denoiser(x, two)(x, 0.7))


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


def test_state_stays_float64_and_untouched(model):
    x = tiny.latent()
    before = x.clone()
    denoised = model.denoiser(x, tiny.cond())(x, 0.7)
    assert denoised.dtype == torch.float64 and torch.equal(x, before)


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


def test_full_grid_is_finite(model):
    x0 = tiny.latent(1)
    schedule = model.schedule(8, 12)
    record = invert(model.denoiser(x0, tiny.cond()), x0, schedule.grid(3), 3, "euler")
    assert record.space == model.space and torch.isfinite(record.x).all()


# VAE.


def picture(batch=2, height=32, width=48):
    generator = torch.Generator().manual_seed(5)
    return torch.rand(batch, 3, height, width, generator=generator)


def test_encode_takes_the_mean_with_shift_and_scale(model):
    pixels = picture(height=model.multiple * 4, width=model.multiple * 6)
    expected = model.vae.encode(pixels * 2 - 1).latent_dist.mean
    shift = 0.1 if model.space == "flow" else 0.0
    encoded = model.encode(pixels)
    assert encoded.dtype == torch.float64
    assert torch.equal(encoded, (expected.double() - shift) * 0.4)
    assert torch.equal(encoded, model.encode(pixels))


def test_decode_undoes_shift_and_scale(model):
    pixels = picture(height=model.multiple * 4, width=model.multiple * 6)
    mean = model.vae.encode(pixels * 2 - 1).latent_dist.mean
    expected = (model.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(model.decode(model.encode(pixels)), expected, atol=1e-5)


# Misuse.


def test_inpainting_unet_is_refused():
    with pytest.raises(ValueError, match="unet must have as many input as output channels, got 9 and 4; use a text-to"):
        DiffusersModel(tiny.unet(in_channels=9), tiny.vae(), tiny.encode_text, tiny.ddim())


def test_guidance_distilled_unet_is_refused():
    with pytest.raises(ValueError, match=r"distilled for a guidance input .*; use the model"):
        DiffusersModel(tiny.unet(time_cond_proj_dim=8), tiny.vae(), tiny.encode_text, tiny.ddim())


def test_unknown_network_is_refused():
    with pytest.raises(TypeError, match="network must be a UNet2D.*, got AutoencoderKL; use an SD1.5"):
        DiffusersModel(tiny.vae(), tiny.vae(), tiny.encode_text, tiny.ddim())


def test_scheduler_of_another_family_is_refused():
    with pytest.raises(ValueError, match="scheduler must fit the network, got FlowMatch.* for UNet2D"):
        DiffusersModel(tiny.unet(), tiny.vae(), tiny.encode_text, tiny.flow())


def test_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction_type must be .*, got 'flow_prediction'; correct"):
        DiffusersModel(tiny.unet(), tiny.vae(), tiny.encode_text, tiny.ddim("flow_prediction"))


def test_latent_of_other_channels_or_size_is_refused(model):
    with pytest.raises(ValueError, match=r"latent must have shape \(batch, 4, height, width\), got .*; encode"):
        model.denoiser(tiny.latent(channels=6), tiny.cond())
    if model.space == "flow":
        with pytest.raises(ValueError, match="latent height and width must be multiples of 2, got 7 and 12; crop"):
            model.denoiser(tiny.latent(height=7), tiny.cond())


def test_cfg_needs_a_negative_prompt(model):
    with pytest.raises(ValueError, match="cfg must be 1 without a negative prompt, got 4.0; give one"):
        model.denoiser(tiny.latent(), tiny.cond(), cfg=4.0)


def test_cfg_must_be_finite(model):
    with pytest.raises(ValueError, match="cfg must be a finite number, got nan; 1 switches"):
        model.denoiser(tiny.latent(), tiny.cond(), tiny.cond(1), cfg=float("nan"))


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_missing_pooled_vector_is_refused(family):
    with pytest.raises(ValueError, match="conditioning must have a pooled vector for this model, got none; use"):
        tiny.model(family).denoiser(tiny.latent(), tiny.cond(pooled=False))


def test_rows_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match="conditioning must have 1 or 2 rows, got 3; give one"):
        model.denoiser(tiny.latent(), tiny.cond(rows=3))


def test_picture_that_is_no_multiple_is_refused(model):
    with pytest.raises(ValueError, match=r"picture must have shape .*multiples of \d+, got \(1, 3, 33, 32\); crop"):
        model.encode(torch.rand(1, 3, 33, 32))


def test_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model must be a folder in the diffusers layout, got .*; give such a folder"):
        DiffusersModel.from_folder(tmp_path)
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    )
    with pytest.raises(ValueError, match="model must be a complete pipeline, got .*; repair it: .*config.json"):
        DiffusersModel.from_folder(tmp_path)
