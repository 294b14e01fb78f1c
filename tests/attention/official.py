"""Layers and steps of every preset on every family: what its authors write, and what is our own choice.

Layers are running numbers of a kind over the whole network, as papers and their code count them; steps are of 50.
"""

import ast
from pathlib import Path

from retrace.attention import FeatureRule
from retrace_tests.attention.problems import cross_site, joint_site, self_site

ROOT = Path(__file__).parents[2]
OTHER = "another family"
OURS = "our own choice"
SDXL = [("input", 4)] * 2 + [("input", 5)] * 2 + [("input", 7)] * 10 + [("input", 8)] * 10 + [("middle", 0)] * 10
SDXL += [("output", block) for block in range(3) for _ in range(10)]
SDXL += [("output", block) for block in range(3, 6) for _ in range(2)]
BLOCKS = {
    "sd15": [("input", i) for i in (1, 2, 4, 5, 7, 8)] + [("middle", 0)] + [("output", i) for i in range(3, 12)],
    "sdxl": SDXL,
    "sd3": [("block", i) for i in range(24)],
    "flux": [("double", i) for i in range(19)] + [("single", i) for i in range(38)],
    "hunyuan_video": [("double", i) for i in range(20)] + [("single", i) for i in range(40)],
    OTHER: [("block", i) for i in range(40)],
}
JOINT = ("sd3", "flux", "hunyuan_video")
NON_RIGID = "joint#0,7-10,18,25,28,37,42,45,50,56"

# preset, variant ("" for those without a row of their own), rule behind the preset's name, family, layers, steps,
# source
ROWS = [
    ("masactrl", "", "", "sd15", "self#10-15", "4-49", "MasaCtrl, notebooks: from step 4 of 50, layer 10 of 16"),
    ("masactrl", "", "", "sdxl", "self#44-69", "4-49", "MasaCtrl, notebooks: from layer 44, 54 or 64 of 70"),
    ("masactrl", "", "", "flux", NON_RIGID, "4-49", "layers of FreeFlux, non-rigid"),
    ("masactrl", "", "", "sd3", "joint#0-23; self#0-12", "4-49", OURS),
    ("masactrl", "", "", "hunyuan_video", "joint#41-59", "4-49", OURS),
    ("masactrl", "", "", OTHER, "self#13-39", "4-49", OURS),
    ("free_flux", "add", "", "flux", "joint#1,2,4,26,30,54,55", "0-49", "FreeFlux, object addition"),
    ("free_flux", "non_rigid", "", "flux", NON_RIGID, "0-49", "FreeFlux, non-rigid"),
    ("free_flux", "background", "", "flux", "joint#0-56", "0-43", "FreeFlux, background: all layers, 44 of 50 steps"),
    ("free_flux", "", "", "sd15", "self#10-15", "0-49", OURS),
    ("free_flux", "", "", "sdxl", "self#44-69", "0-49", OURS),
    ("free_flux", "", "", "hunyuan_video", "joint#41-59", "0-49", OURS),
    ("free_flux", "", "", OTHER, "self#13-39", "0-49", OURS),
    ("free_flux", "background", "", "sd15", "self#10-15", "0-43", OURS),
    ("free_flux", "background", "", "sdxl", "self#44-69", "0-43", OURS),
    ("free_flux", "background", "", "hunyuan_video", "joint#41-59", "0-43", OURS),
    ("free_flux", "background", "", OTHER, "self#13-39", "0-43", OURS),
    ("stable_flow", "", "", "flux", "joint#0,1,17,18,25,28,53,54,56", "0-49", "Stable Flow, vital layers of Flux.1"),
    ("stable_flow", "", "", "sd15", "self#10-15", "0-49", OURS),
    ("stable_flow", "", "", "sdxl", "self#44-69", "0-49", OURS),
    ("stable_flow", "", "", "hunyuan_video", "joint#41-59", "0-49", OURS),
    ("stable_flow", "", "", OTHER, "self#13-39", "0-49", OURS),
    ("structure", "", "", "sd15", "self#8-15", "0-24", "Plug-and-Play: output blocks 4 to 11, first half"),
    ("structure", "", "", "sdxl", "self#34-69", "0-24", OURS),
    ("structure", "", "", "sd3", "joint#0-23", "0-9", "ConsistEdit: all; Shin et al.: first fifth, not self-attention"),
    ("structure", "", "", "flux", "joint#19-56", "0-9", "ConsistEdit: single blocks; Shin et al.: first fifth"),
    ("structure", "", "", "hunyuan_video", "joint#0-59", "0-9", "ConsistEdit: all; Shin et al.: first fifth"),
    ("structure", "", "", OTHER, "self#0-39", "0-9", "Shin et al.: all, first fifth"),
    ("pnp", "", "", "sd15", "self#8-15", "0-24", "Plug-and-Play: output blocks 4 to 11, first half"),
    ("pnp", "", "feature", "sd15", "output:4", "0-39", "Plug-and-Play: output block 4, first 0.8"),
    ("pnp", "", "", "sdxl", "self#34-69", "0-24", OURS),
    ("pnp", "", "feature", "sdxl", "output:1", "0-39", OURS),
    ("p2p", "", "words", "flux", "joint#0-44", "0-49", "ReFlex: up to block 44 of 57 (from 13; from 0 here)"),
    ("p2p", "", "words", "hunyuan_video", "joint#0-45", "0-49", OURS),
    ("p2p", "", "words", "sd15", "cross#0-15", "0-49", "Prompt-to-Prompt: every cross-attention"),
    ("p2p", "", "words", "sdxl", "cross#0-69", "0-49", "Prompt-to-Prompt: every cross-attention"),
    ("p2p", "", "words", "sd3", "joint#0-23", "0-49", "Shin et al.: all"),
    ("p2p", "", "words", OTHER, "cross#0-39", "0-49", "Prompt-to-Prompt: every cross-attention"),
    ("p2p", "", "self", "sd15", "self#0-15", "0-19", "Prompt-to-Prompt notebook: self_replace_steps 0.4"),
    ("p2p", "", "self", "sdxl", "self#0-69", "0-19", "Prompt-to-Prompt notebook: self_replace_steps 0.4"),
    ("p2p", "", "self", "sd3", "joint#0-23", "0-9", "Shin et al.: first fifth, not the second attention"),
    ("p2p", "", "self", "flux", "joint#0-56", "0-9", "Shin et al.: first fifth"),
    ("p2p", "", "self", "hunyuan_video", "joint#0-59", "0-9", "Shin et al.: first fifth"),
    ("p2p", "", "self", OTHER, "self#0-39", "0-9", "Shin et al.: first fifth"),
    ("reference", "join", "", OTHER, "self#0-39", "0-49", "StyleAligned: every self-attention"),
    ("reference", "join", "", "sd15", "self#0-15", "0-49", "StyleAligned: every self-attention"),
    ("reference", "join", "", "sdxl", "self#0-69", "0-49", "StyleAligned: every self-attention"),
    ("reference", "join", "", "flux", "joint#0-56", "0-49", OURS),
    ("reference", "replace", "", "sd15", "self#1-15", "0-49", "VisCtrl: L = 1 of 16"),
    ("reference", "replace", "", "sdxl", "self#4-69", "0-49", OURS),
    ("reference", "replace", "", "flux", "joint#1-56", "0-49", OURS),
    ("reference", "replace", "", OTHER, "self#0-39", "0-49", OURS),
    ("rf_edit", "", "", "flux", "joint#39-56", "0-9", "RF-Solver-Edit: single blocks above 19; 2 to 5 of 25 steps"),
    ("rf_edit", "", "", "hunyuan_video", "joint#41-59", "0-5", "RF-Solver-Edit: blocks above 20; 1 to 3 of 25"),
    ("rf_edit", "", "", OTHER, "self#20-39", "0-9", OURS),
    ("kv_edit", "", "", OTHER, "self#0-39", "0-49", OURS),
    ("kv_edit", "", "", "flux", "joint#0-56", "0-49", "KV-Edit: all 57 blocks"),
    ("unified", "", "target", "sd15", "self#0-15", "0-14", "InfEdit: every self-attention until 0.3"),
    ("unified", "", "mutual", "sd15", "self#0-15", "0-14", "InfEdit: every self-attention until 0.3"),
    ("unified", "", "mutual late", "sd15", "self#0-15", "15-49", "InfEdit: every self-attention from 0.3"),
    ("unified", "", "words", "sd15", "cross#0-15", "0-49", "InfEdit: every cross-attention"),
    ("unified", "", "target", OTHER, "self#0-39", "0-14", OURS),
    ("unified", "", "mutual", OTHER, "self#0-39", "0-14", OURS),
    ("unified", "", "mutual late", OTHER, "self#0-39", "15-49", OURS),
    ("unified", "", "words", OTHER, "cross#0-39", "0-49", OURS),
]


def sites_of(family):
    """Every attention of a published model of a family, in running order."""
    blocks = BLOCKS[family]
    for number, (stack, index) in enumerate(blocks):
        about = {"stack": stack, "index": index, "number": number, "depth": number / (len(blocks) - 1)}
        if family in JOINT:
            yield joint_site(**about)
        if family not in JOINT or (family == "sd3" and number < 13):
            yield self_site(**about, latent=(1, 8, 8))
        if family not in JOINT:
            yield cross_site(**about, latent=(1, 8, 8))


def met(rule, family):
    """Layers that a rule acts on, as text by kind."""
    if isinstance(rule, FeatureRule):
        return f"{rule.stack}:{rule.index}"
    texts = []
    for kind in ("joint", "self", "cross"):
        numbers = [site.number for site in sites_of(family) if site.kind == kind and rule.covers(site)]
        texts += [f"{kind}#{ranges(numbers)}"] if numbers else []
    return "; ".join(texts)


def ranges(numbers):
    """0, 1, 17, 18, 19 as 0,1,17-19."""
    runs = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a},{b}" if b == a + 1 else f"{a}-{b}" for a, b in runs)


def own_layers():
    """Layers that the families of the nodes give to presets, by family, read from their text."""
    found = {}
    for path in (ROOT / "nodes" / "attending" / "resolvers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "preset_layers":
                found[path.stem] = ast.literal_eval(node.value)
    return found
