"""The standalone command: the same methods as in ComfyUI, on a diffusers pipeline.

torch and diffusers are imported by the commands that need them, so that `--help` works without and a missing
package is reported in a sentence.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from .cli_attention import attended, attention_options, check_attention
from .version import VERSION

if TYPE_CHECKING:
    from torch import Tensor

    from .backends.diffusers import DiffusersModel
    from .inversion import Denoiser, Inversion, Method, StepReport

FAILED = 2
INTERRUPTED = 130  # 128 + SIGINT, what shells report for Ctrl+C

RECORD_SUFFIXES = (".safetensors",)
DEMO_MODELS = {"demo-eps": "eps", "demo-flow": "flow"}
MAX_SIDE = 16384  # pixels, as ComfyUI's own limit
DEMO_SIZE = (64, 64)  # the only size that the demo models have seen

MODEL_HELP = (
    "demo-eps or demo-flow (bundled, trained on the Shapes world), or a folder with a diffusers pipeline "
    "(SD1.5, SDXL, SD3, Flux). Nothing is downloaded."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for whatever the user can mend, 130 for Ctrl+C."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help()
        return 0
    try:
        options.run(options)
    except KeyboardInterrupt:
        return _say("interrupted.", INTERRUPTED)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        return _say(
            f'this command needs the package {missing}, which is not installed; run pip install -e ".[standalone]" '
            "in the folder of Retrace."
        )
    except (ValueError, TypeError, OSError, OverflowError, RuntimeError) as error:
        # RuntimeError is how torch says that memory ran out, OverflowError how a tokenizer without files fails.
        if options.traceback:
            raise
        return _say(" ".join(str(error).split()))
    return 0


def _say(sentence: str, code: int = FAILED) -> int:
    print(f"retrace: {sentence}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """A parser that refuses in one sentence instead of repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(_say(f"{message}; see {self.prog} --help."))


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults, but keep the line breaks of descriptions; options without a default stay as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", False) or action.default == []:
            return action.help
        return super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = _Parser(
        prog="retrace",
        formatter_class=_Help,
        description="Take a picture back into a model's noise, and edit it from there.",
        epilog=textwrap.dedent("""\
            examples:
              retrace demo
              retrace edit demo/picture.png --model demo-eps --source "a big red cross on a blue background" \\
                  --target "a big green cross on a blue background" -o edited.png
              retrace invert photo.jpg --model path/to/pipeline --source "a photo of a cat" -o cat.safetensors
              retrace replay cat.safetensors --model path/to/pipeline --target "a photo of a dog" -o dog.png"""),
    )
    parser.add_argument("--version", action="version", version=f"retrace {VERSION}")
    parser.set_defaults(run=None, traceback=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Callable[[Any], None], summary: str, details: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=summary, description=f"{summary}\n\n{details}".strip(), formatter_class=_Help
        )
        sub.add_argument("--traceback", action="store_true", help="show where an error was raised")
        sub.set_defaults(run=run)
        return sub

    demo = command(
        "demo",
        _demo,
        "Invert, reconstruct and edit a bundled picture with both demo models.",
        "Writes grid.png, report.txt and one record a model into a folder, and prints the report.",
    )
    demo.add_argument(
        "-o", "--output", default="retrace-demo", metavar="DIR", help="folder to write into; made if missing"
    )
    demo.add_argument("--steps", type=int, default=25, help="noise levels to walk through")
    demo.add_argument("--method", default="midpoint", help="inversion method, see retrace methods")
    demo.add_argument("--cfg", type=float, default=4.0, help="guidance of the edit")

    command("methods", _methods, "List the inversion methods with their settings and papers.")

    invert = command(
        "invert",
        _invert,
        "Take a picture into the noise and save the record.",
        "The record is one .safetensors file; replay reconstructs or edits from it, with the same model.",
    )
    invert.add_argument("picture", help="picture file")
    _model_options(invert)
    _inversion_options(invert)
    invert.add_argument("-o", "--output", required=True, metavar="RECORD", help="record file to write, .safetensors")
    invert.add_argument("--path", action="store_true", help="also keep every state on the way, for editing with a mask")
    invert.add_argument(
        "--half", action="store_true", help="store the states in float16: half the size, no longer exact"
    )
    invert.add_argument("--no-check", action="store_true", help="skip the reconstruction that measures the round trip")

    replay = command(
        "replay",
        _replay,
        "Reconstruct or edit from a saved record.",
        "Without --target the source is reconstructed. The picture is centred on the size that was inverted.",
    )
    replay.add_argument("record", help="record file, .safetensors")
    _model_options(replay)
    _edit_options(replay, target_required=False)
    replay.add_argument("-o", "--output", required=True, metavar="PICTURE", help="picture file to write")

    edit = command(
        "edit",
        _edit,
        "Invert a picture and edit it in one go.",
        "The source prompt says what the picture shows, the target prompt what it is to show.",
    )
    edit.add_argument("picture", help="picture file")
    _model_options(edit)
    _inversion_options(edit)
    _edit_options(edit, target_required=True)
    edit.add_argument("-o", "--output", required=True, metavar="PICTURE", help="picture file to write")
    edit.add_argument("--save", metavar="RECORD", help="also save the record, .safetensors")
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="precision of the networks"
    )


def _inversion_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, metavar="PROMPT", help="what the picture shows")
    parser.add_argument("--method", default="midpoint", help="inversion method, see retrace methods")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="setting of the method; may be repeated"
    )
    parser.add_argument("--steps", type=int, default=25, help="noise levels between the picture and pure noise")
    parser.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="how far into the noise, above 0 to 1; lower keeps more of the picture",
    )
    parser.add_argument("--source-cfg", type=float, default=1.0, help="guidance while inverting; 1 reconstructs best")
    parser.add_argument(
        "--size", metavar="WIDTHxHEIGHT", help="resize and crop the picture to this; demo models always use 64x64"
    )


def _edit_options(parser: argparse.ArgumentParser, target_required: bool) -> None:
    parser.add_argument("--target", required=target_required, metavar="PROMPT", help="what the picture is to show")
    parser.add_argument("--negative", default="", metavar="PROMPT", help="what the edit is to stay away from")
    parser.add_argument("--cfg", type=float, default=4.0, help="guidance towards the target")
    parser.add_argument("--mask", help="picture file, white = edit; the latent outside stays exactly as it was")
    parser.add_argument("--feather", type=float, default=0.0, help="blur of the mask's edge, radius in pixels")
    attention_options(parser)


# Commands


def _demo(options: argparse.Namespace) -> None:
    from .showcase import showcase

    _hush()
    print(showcase(options.output, options.steps, _method(options.method), options.cfg, _progress))


def _methods(options: argparse.Namespace) -> None:
    from .inversion import METHODS

    for name, method in METHODS.items():
        print(f"{name}: {method.label}")
        exact = "reverses up to rounding" if method.reversible else f"order {method.order}"
        calls = method().evaluations(20)
        facts = f"{exact}, {'at most ' if method.stops_early else ''}{calls} model calls for 20 steps"
        for line in (method.description, facts, method.reference):
            print(textwrap.fill(line, 100, initial_indent="    ", subsequent_indent="    "))
        for setting in method.parameters():
            limits = f", {setting.minimum} to {setting.maximum}" if setting.minimum is not None else ""
            print(f"    --set {setting.name}={setting.default}{limits}: {setting.tooltip}")
        print()


def _invert(options: argparse.Namespace) -> None:
    from .backends.pictures import check_writable
    from .inversion import relative_error, replay, save

    output = check_writable(options.output, RECORD_SUFFIXES)
    model, record, source = _take_in(options, keep_path=options.path)
    if not options.no_check:
        back = replay(record, source, on_step=_progress("reconstructing"), device=model.device)
        print(f"round trip: relative error {relative_error(back.cpu(), record.x0):.2e} of the latent")
    save(record, output, half=options.half)
    print(f"saved {output}")


def _replay(options: argparse.Namespace) -> None:
    from .backends.pictures import check_writable
    from .inversion import load

    output = check_writable(options.output)
    _check_mask(options)
    record = load(options.record)
    check_attention(options)
    model = _model(options)
    source = _source_denoiser(model, record)
    _give_out(options, model, record, source, output)


def _edit(options: argparse.Namespace) -> None:
    from .backends.pictures import check_writable
    from .inversion import save

    output = check_writable(options.output)
    kept = options.save and check_writable(options.save, RECORD_SUFFIXES)
    _check_mask(options)
    check_attention(options)
    kept_path = options.mask is not None or options.attention is not None
    model, record, source = _take_in(options, keep_path=kept_path)
    if kept:
        save(record, kept)
        print(f"saved {kept}")
    _give_out(options, model, record, source, output)


# What the commands share


def _check_mask(options: argparse.Namespace) -> None:
    """Refuse a mask that cannot be used before the model is loaded and the picture inverted for nothing."""
    from .backends.pictures import check_feather, check_picture

    if options.mask is None:
        return
    if options.target is None:
        raise ValueError("target must be given with a mask, got none; say what the masked part is to show.")
    check_picture(options.mask, "mask")
    check_feather(options.feather)


def _take_in(options: argparse.Namespace, keep_path: bool) -> tuple[DiffusersModel, Inversion, Denoiser]:
    """Read and invert the picture; return the model, the record and the source denoiser."""
    import torch

    from .backends.pictures import check_picture, read_picture
    from .inversion import check_index, invert, noise_std, strength_to_index

    method = _method(options.method, options.set)
    size = _size(options)
    check_picture(options.picture)
    model = _model(options)
    # Not in inference mode, whose tensors could not be differentiated: some methods do.
    with torch.no_grad():
        picture = read_picture(options.picture, model.multiple, size)
        x0 = model.encode(picture)
        sigmas = model.schedule(*x0.shape[2:]).grid(options.steps)
        level = strength_to_index(options.strength, options.steps)
        check_index(level, sigmas, method.min_index)
        source = _denoiser(model, x0, options.source, "", options.source_cfg)
        record = invert(
            source,
            x0,
            sigmas,
            level,
            method,
            keep_path=keep_path,
            on_step=_progress("inverting"),
        ).marked(
            _fingerprints(model, options.source, options.source_cfg),
            {
                "retrace": VERSION,
                "model": model.name,
                "source_prompt": options.source,
                "source_cfg": options.source_cfg,
                "width": picture.shape[3],
                "height": picture.shape[2],
            },
        )
    print(
        f"inverted with {record.method}: {record.meta['evaluations']} model calls, {record.meta['seconds']:.1f} s, "
        f"noise std {noise_std(record.x, record.x0, record.sigma, record.space):.3f} of the expected 1"
    )
    return model, record, source


def _give_out(
    options: argparse.Namespace, model: DiffusersModel, record: Inversion, source: Denoiser, output: Any
) -> None:
    """Come back from a record, with or without a target, and write the picture."""
    import torch

    from .backends.pictures import read_mask, write_picture
    from .inversion import blend, check_fit, replay

    with torch.inference_mode():
        target = after_step = mask = None
        if options.mask is not None:
            size = (int(record.meta["width"]), int(record.meta["height"]))
            mask = read_mask(options.mask, 1, size, (record.shape[-2], record.shape[-1]), options.feather)
            after_step = blend(record, mask, model.device)
        if options.target is not None and options.attention is not None:
            target = attended(options, model, record, mask)
        elif options.target is not None:
            target = _denoiser(model, record.x0, options.target, options.negative, options.cfg)
        fingerprints = _fingerprints(model, str(record.meta["source_prompt"]), float(record.meta["source_cfg"]))
        check_fit(record, source, target, fingerprints=fingerprints)
        x = replay(
            record,
            source,
            target,
            after_step=after_step,
            on_step=_progress("editing" if target else "reconstructing"),
            device=model.device,
        )
        write_picture(model.decode(x), output)
    print(f"wrote {output}")


def _source_denoiser(model: DiffusersModel, record: Inversion) -> Denoiser:
    if not {"source_prompt", "source_cfg", "width", "height"} <= set(record.meta):
        raise ValueError(
            "record must come from the standalone command, got one without its source prompt; "
            "replay it in ComfyUI, where it was made."
        )
    return _denoiser(model, record.x0, str(record.meta["source_prompt"]), "", float(record.meta["source_cfg"]))


def _denoiser(model: DiffusersModel, latent: Tensor, prompt: str, negative: str, cfg: float) -> Denoiser:
    import torch

    with torch.no_grad():
        return model.denoiser(latent, model.prompt(prompt), None if cfg == 1.0 else model.prompt(negative), cfg)


def _fingerprints(model: DiffusersModel, prompt: str, cfg: float) -> dict[str, str]:
    from .inversion import fingerprint

    # The words, not their encoding: that differs in its last bits from machine to machine.
    return {"model": model.fingerprint(), "source": fingerprint(prompt, float(cfg))}


def _model(options: argparse.Namespace) -> DiffusersModel:
    import torch

    from .backends.diffusers import DiffusersModel
    from .backends.shapes import shapes_model

    _hush()
    device = _device(options.device)
    dtype = getattr(torch, options.dtype)
    if options.model in DEMO_MODELS:
        return shapes_model(DEMO_MODELS[options.model], dtype, device)
    return DiffusersModel.from_folder(options.model, dtype, device)


def _hush() -> None:
    """Switch off the loading bars of the libraries, which would bury what this command says."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def _device(name: str) -> str:
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be one that torch finds here, got {name!r}; use auto or cpu.") from error
    return name


def _size(options: argparse.Namespace) -> tuple[int, int] | None:
    if options.model in DEMO_MODELS:
        return DEMO_SIZE
    if options.size is None:
        return None
    width, _, height = options.size.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"size must be WIDTHxHEIGHT in pixels, got {options.size!r}; write it like 512x768.")
    if max(int(width), int(height)) > MAX_SIDE:
        raise ValueError(f"size must be at most {MAX_SIDE} pixels a side, got {options.size!r}; choose a smaller one.")
    return int(width), int(height)


def _method(name: str, settings: Sequence[str] = ()) -> Method:
    from .inversion import METHODS, get_method

    known = {s.name: s.kind for s in METHODS[name].parameters()} if name in METHODS else {}
    given: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"set must be NAME=VALUE, got {setting!r}; write it like gamma=0.9.")
        given[key] = _value(key, text, known.get(key, str))
    return get_method(name, given)


def _value(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"setting {key} must be true or false, got {text!r}; write one of them.")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"setting {key} must be of type {kind.__name__}, got {text!r}; write a number.") from None


def _progress(what: str) -> Callable[[StepReport], None]:
    """Return a listener that keeps one line on the terminal up to date; silent where stderr is none."""

    def show(report: StepReport) -> None:
        if sys.stderr.isatty():
            done = report.index + 1
            end = "\n" if done == report.total else ""
            print(f"\r{what} {done}/{report.total}", end=end, file=sys.stderr, flush=True)

    return show
