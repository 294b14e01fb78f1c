"""Templates of inversion."""

from __future__ import annotations

from retrace_tests.workflows.graph import Graph, Node
from retrace_tests.workflows.parts import Scene

# The list's own entry for an empty folder: a template must not name a file of ours.
NOTHING_SAVED = "(nothing saved yet)"


def invert_and_reconstruct() -> Graph:
    scene = Scene("invert_and_reconstruct", "eps", "a big red star on the left of a cyan background", seed=7)
    inversion = scene.invert(keep_path=True)
    back = scene.back("Resample: no positive, so it reconstructs", inversion)
    report = scene.report(None, inversion, back, column=3)
    scene.add("PreviewImage", 5, "Errors by step, and the noise", images=report[1])
    scene.look(4, "Source | reconstruction", scene.picture[0], back)
    return scene.frame("Picture and model | Into the noise | And back | Look", 2, 1, 1, 2)


def invert_and_edit() -> Graph:
    scene = Scene("invert_and_edit", "eps", "a big red circle on the left of a blue background", seed=3)
    target, negative = scene.prompts("a big green circle on the left of a blue background")
    inversion = scene.invert()
    back = scene.back("Reconstruct", inversion)
    edit = scene.back("Edit", inversion, cfg=3.0, positive=target, negative=negative)
    scene.look(4, "Source | reconstruction | edit", scene.picture[0], back, edit)
    return scene.frame("Picture, model and prompts | Into the noise | And back, twice | Look", 2, 1, 1, 2)


def flow_rf_solver_edit() -> Graph:
    scene = Scene("flow_rf_solver_edit", "flow", "a big yellow square on the right of a purple background", seed=5)
    target, negative = scene.prompts("a big white square on the right of a purple background")
    solver = scene.add("RFSolverSample", 2, "RF-Solver, up and down")
    falling = scene.add("BasicScheduler", 2, model=scene.model, scheduler="normal", steps=30)
    rising = scene.add("FlipSigmas", 2, sigmas=falling)
    shared = {"noise": scene.add("DisableNoise", 2), "sampler": solver}
    alone = scene.add("BasicGuider", 3, "Guide up: source prompt", model=scene.model, conditioning=scene.source)
    guided = {"model": scene.model, "positive": target, "negative": negative, "cfg": 3.0}
    guider = scene.add("CFGGuider", 4, "Guide down: target", **guided)
    kind = "SamplerCustomAdvanced"
    up = scene.add(kind, 3, "Invert: rising sigmas", **shared, guider=alone, sigmas=rising, latent_image=scene.latent)
    shared |= {"sigmas": falling, "latent_image": up}
    back = scene.add(kind, 4, "Reconstruct: falling sigmas", **shared, guider=alone)
    edit = scene.add(kind, 4, "Edit: falling sigmas", **shared, guider=guider)
    scene.look(5, "Source | reconstruction | edit", scene.picture[0], back, edit)
    titles = "Picture, model and prompts | Solver and sigmas | Into the noise | And back, twice | Look"
    return scene.frame(titles, 2, 1, 1, 1, 2)


def edit_inside_a_mask() -> Graph:
    scene = Scene("edit_inside_a_mask", "eps", "a big white cross on the right of a green background", seed=11)
    target, negative = scene.prompts("a big purple cross on the right of a green background")
    mask = scene.grown()
    inversion = scene.invert(keep_path=True)
    wanted = {"cfg": 5.0, "positive": target, "negative": negative, "mask": mask}
    edit = scene.back("Edit inside the mask", inversion, **wanted)
    shown = scene.add("MaskToImage", 3, "The mask as a picture", mask=mask)
    scene.look(4, "Source | mask | edit", scene.picture[0], shown[0], edit)
    return scene.frame("Picture, model and prompts | Into the noise | Edit | Look", 2, 1, 1, 2)


def save_and_load() -> Graph:
    scene = Scene("save_and_load", "eps", "a small cyan ring at the top of a black background", seed=2)
    target, negative = scene.prompts("a small red ring at the top of a black background")
    inversion = scene.invert()
    saved = scene.add("SaveInversion", 3, inversion=inversion, filename_prefix=f"retrace/{scene.name}")
    loaded = scene.add("LoadInversion", 3, file=NOTHING_SAVED, path=saved)
    back = scene.back("Reconstruct: needs the source prompt", loaded, 4, source=scene.source)
    edit = scene.back("Edit", loaded, 4, cfg=3.0, positive=target, negative=negative)
    scene.look(5, "Source | reconstruction | edit", scene.picture[0], back, edit)
    titles = "Picture, model and prompts | Into the noise | To a file and back | And back, twice | Look"
    return scene.frame(titles, 2, 1, 1, 1, 2)


def sampler_custom_advanced() -> Graph:
    scene = Scene("sampler_custom_advanced", "eps", "a big yellow triangle on a blue background", seed=9)
    target, negative = scene.prompts("a big red triangle on a blue background")
    inversion = scene.invert()
    guided = {"model": scene.model, "positive": target, "negative": negative, "cfg": 3.0}
    guider = scene.add("CFGGuider", 3, "Any stock guider", **guided)
    resume = scene.add("InversionSampler", 3, inversion=inversion)
    quiet = scene.add("DisableNoise", 3)
    stock = scene.add("KSamplerSelect", 3, "A stock sampler", sampler_name="dpmpp_2m")
    shared = {"guider": guider, "sigmas": inversion[3], "latent_image": inversion[1]}
    kind = "SamplerCustomAdvanced"
    exact = scene.add(kind, 4, "From the stored state", noise=quiet, sampler=resume, **shared)
    near = scene.add(kind, 4, "From the inversion's NOISE", noise=inversion[2], sampler=stock, **shared)
    scene.look(5, "Source | stored state | stock sampler", scene.picture[0], exact, near)
    titles = "Picture, model and prompts | Into the noise | Guider and samplers | Two ways down | Look"
    return scene.frame(titles, 2, 1, 1, 1, 2)


def null_text() -> Graph:
    scene = Scene("null_text", "eps", "a big red circle on the left of a blue background", seed=3)
    target, empty = scene.prompts("a big green circle on the left of a blue background", "Empty prompt")
    inversion = scene.invert("Invert: cfg 1, with its path", steps=12, method="ddim", keep_path=True)
    fitted = scene.add("NullTextOptimize", 3, model=scene.model, inversion=inversion, negative=empty)
    unfitted = {"positive": scene.source, "negative": empty}
    without = scene.back("Source prompt at cfg 7.5, not fitted", inversion, 4, cfg=7.5, **unfitted)
    back = scene.back("Source prompt at cfg 7.5, fitted", fitted, 4, cfg=7.5)
    edit = scene.back("Target prompt at cfg 7.5, fitted", fitted, 4, cfg=7.5, positive=target)
    scene.add("PreviewImage", 6, "Loss of every step", images=fitted[1])
    scene.look(5, "Source | not fitted | fitted | edit", scene.picture[0], without, back, edit)
    titles = "Picture, model and prompts | Into the noise | Fit | And back, three times | Look"
    return scene.frame(titles, 2, 1, 1, 1, 2)


def coupled_methods() -> Graph:
    scene = Scene("coupled_methods", "eps", "a big yellow ring on the left of a purple background", seed=4)
    inversions = {
        "Euler": scene.invert("Euler, to compare", steps=4, method="euler"),
        "EDICT": scene.invert(kind="EDICTCouple", steps=4),
        "BDIA": scene.invert(kind="BDIAInvert", steps=4),
        "O-BELM": scene.invert(kind="BELMInvert", steps=4),
    }
    return _compared(scene, inversions, "Into the noise, 4 steps")


def fixed_point() -> Graph:
    scene = Scene("fixed_point", "eps", "a big green star on a white background", seed=6)
    inversions = {
        "Euler": scene.invert("Euler, to compare", steps=6, method="euler"),
        "fixed point": scene.invert(kind="FixedPointInvert", steps=6),
    }
    return _compared(scene, inversions, "Into the noise, 6 steps")


def spd_inversion() -> Graph:
    scene = Scene("spd_inversion", "eps", "a big cyan ring on the right of a red background", seed=8)
    inversions = {
        "DDIM": scene.invert("DDIM, where the descent starts", steps=10, method="ddim"),
        "SPDInv": scene.invert(kind="SPDInvert", steps=10, iterations=10),
    }
    return _compared(scene, inversions, "Into the noise, 10 steps")


def noise_optimize() -> Graph:
    scene = Scene("noise_optimize", "eps", "a big red circle on the left of a blue background", seed=3)
    target, negative = scene.prompts("a big green circle on the left of a blue background")
    ground = scene.add("InvertMask", 2, "The background", mask=scene.grown())
    inversion = scene.invert(steps=6, method="ddim")
    wanted = {"cfg": 5.0, "positive": target, "negative": negative}
    edit = scene.back("Edit, as it is", inversion, **wanted)
    links = {"model": scene.model, "inversion": inversion, "reference": scene.latent, "mask": ground, **wanted}
    title = "Edit whose background meets the source"
    moved = scene.add("NoiseOptimize", 3, title, **links, iterations=8, learning_rate=0.05)
    scene.add("PreviewImage", 5, "Loss of every iteration", images=moved[2])
    fitting = scene.decode(moved[1], 4, "Decode the one that fits")
    scene.look(4, "Source | edit | edit with its noise optimised", scene.picture[0], edit, fitting[0])
    return scene.frame("Picture, model and prompts | Into the noise | Edit, twice | Look", 2, 1, 1, 2)


def exact_at_any_cfg() -> Graph:
    scene = Scene("exact_at_any_cfg", "eps", "a big red circle on the left of a blue background", seed=3)
    target = scene.prompt("Target prompt", "a big green circle on the left of a blue background")
    guided = {"cfg": 7.5, "negative": scene.prompt("Empty prompt", "")}
    inversions = {
        "DDIM": scene.invert("DDIM inversion, to compare", steps=12, method="ddim"),
        "direct": scene.invert("Direct Inversion for cfg 7.5", "DirectInversion", steps=12, **guided),
        "noise maps": scene.invert("Noise maps at cfg 7.5", "NoiseMapInvert", steps=12, **guided),
    }
    latents = [
        scene.back(f"{what} prompt at cfg 7.5: {name}", inversion, column, positive=wanted, **guided)
        for what, wanted, column in (("Source", scene.source, 3), ("Target", target, 4))
        for name, inversion in inversions.items()
        if (what, name) != ("Target", "DDIM")
    ]
    title = "Source | DDIM | direct | noise maps | direct, edited | noise maps, edited"
    scene.look(5, title, scene.picture[0], *latents)
    titles = "Picture, model and prompts | Into the noise, 12 steps | And back at cfg 7.5 | Edit at cfg 7.5 | Look"
    return scene.frame(titles, 2, 1, 1, 1, 2)


def rf_inversion() -> Graph:
    scene = Scene("rf_inversion", "flow", "a big yellow square on the right of a purple background", seed=5)
    target = scene.prompt("Target prompt", "a big white star on the right of a purple background")
    empty = scene.prompt("Empty prompt: nothing said of the source", "")
    edits = []
    for stop in (0.25, 0.8, 0.9):
        title = f"RF-Inversion, pulled until {stop:g}"
        inversion = scene.invert(title, "RFInversion", source=empty, scheduler="simple", stop=stop)
        wanted = {"cfg": 3.0, "positive": target, "negative": empty}
        edits.append(scene.back(f"Edit, pulled until {stop:g}", inversion, **wanted))
    scene.look(4, "Source | pulled until 0.25 | 0.8 | 0.9", scene.picture[0], *edits)
    return scene.frame("Picture, model and prompts | Into the noise | And back, pulled | Look", 2, 1, 1, 2)


def negative_prompt_inversion() -> Graph:
    scene = Scene("negative_prompt_inversion", "eps", "a big white ring on the left of a red background", seed=8)
    target = scene.prompt("Target prompt", "a big yellow ring on the left of a red background")
    empty = scene.prompt("Empty prompt, to compare", "")
    inversion = scene.invert("Invert at cfg 1", method="ddim")
    plainly = {"cfg": 7.5, "positive": scene.source, "negative": empty}
    lost = scene.back("Source prompt at cfg 7.5, empty negative", inversion, **plainly)
    shared = {"model": scene.model, "inversion": inversion}
    kind = "NegativePromptInversion"
    back = scene.add(kind, 3, "Source prompt at cfg 7.5", **shared, target=scene.source)
    plain = scene.add(kind, 4, "Edit: plain", **shared, target=target, cfg=2.0)
    held = scene.add(kind, 4, "Edit: small changes held back", **shared, target=target, cfg=2.0, prox="l1")
    title = "Source | empty negative | source as negative | edit | edit, held back"
    scene.look(5, title, scene.picture[0], lost, back, plain, held)
    return scene.frame("Picture, model and prompts | Into the noise | And back at cfg 7.5 | Edit | Look", 2, 1, 1, 1, 2)


def _compared(scene: Scene, inversions: dict[str, Node], up: str) -> Graph:
    """Each inversion comes back, is measured and shown."""
    latents = []
    for name, inversion in inversions.items():
        latents.append(scene.back(f"Reconstruct: {name}", inversion))
        scene.report(f"Report: {name}", inversion, latents[-1])
    scene.look(5, " | ".join(("Source", *inversions)), scene.picture[0], *latents)
    return scene.frame(f"Picture and model | {up} | And back | Compare | Look", 2, 1, 1, 1, 2)
