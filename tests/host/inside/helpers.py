"""What checks expect: refusals, interrupts, and that all stays as it was."""

import contextlib
import logging

import comfy.model_management
import torch


def never_worse(text):
    """No step of a report of fits ends with more than it starts with."""
    fits = [line.split() for line in text.splitlines() if "updates" in line and "->" in line]
    assert fits and all(float(words[5]) <= float(words[3]) for words in fits), text


def relative(value, wanted):
    """|value - wanted| / |wanted|."""
    return float((value.double() - wanted.double()).norm() / wanted.double().norm())


def refuses(call, *parts):
    """The call raises a ValueError or TypeError of one sentence that holds all parts."""
    try:
        call()
    except (ValueError, TypeError) as error:
        text = str(error)
        for part in parts:
            assert part in text, f"{part!r} is not in: {text}"
        assert "\n" not in text and text.rstrip().endswith("."), text
        return
    raise AssertionError(f"nothing was refused; expected {parts}")


def refuses_each(call, *cases):
    """Each case is changed inputs and parts of the one sentence that they are refused with."""
    for changes, *parts in cases:
        refuses(lambda c=changes: call(**c), *parts)


def around(model, wrapper):
    """A copy of a MODEL with a wrapper around its network, through the host's own option."""
    wrapped = model.clone()
    wrapped.set_model_unet_function_wrapper(wrapper)
    return wrapped


def cached(model, key="easycache"):
    """A copy of a MODEL behind a node that skips calls of its network."""
    patched = model.clone()
    patched.add_wrapper_with_key("outer_sample", key, lambda executor, *args, **kwargs: executor(*args, **kwargs))
    return patched


class Counter:
    """Sees the calls of a model's network; may interrupt after some."""

    def __init__(self, model, interrupt_after=None):
        self.model = around(model, self)
        self.calls, self.first, self.interrupt_after = 0, None, interrupt_after

    def __deepcopy__(self, memo):
        return self

    def __call__(self, apply_model, args):
        self.calls += 1
        if self.first is None:
            self.first = args["input"].clone()
        answer = apply_model(args["input"], args["timestep"], **args["c"])
        if self.calls == self.interrupt_after:
            comfy.model_management.interrupt_current_processing(True)
        return answer


def interrupted(run, model, after, calls=None):
    """The run of a model is interrupted after some calls of the network and ends there; all stays as it was."""
    counter, before = Counter(model, interrupt_after=after), snapshot(model)
    watched = snapshot(counter.model)
    try:
        run(counter.model)
    except comfy.model_management.InterruptProcessingException:
        assert counter.calls in (calls or (after,)), (counter.calls, after)
    else:
        raise AssertionError("the interrupt was swallowed")
    finally:
        comfy.model_management.interrupt_current_processing(False)
    same_snapshot(model, before)
    same_snapshot(counter.model, watched)


@contextlib.contextmanager
def logged(level=logging.NOTSET):
    """Records of the log, as they come."""
    records = []
    handler = logging.Handler(level)
    handler.emit = records.append
    logging.getLogger().addHandler(handler)
    try:
        yield records
    finally:
        logging.getLogger().removeHandler(handler)


def snapshot(model):
    """Bits of the weights and the shape of the options of a MODEL."""
    return weights_of(model.model), repr(model.model_options), sorted(map(str, model.object_patches))


def same_snapshot(model, before):
    """The MODEL has the weights and options of the snapshot."""
    weights, options, patches = before
    same_weights(model.model, weights)
    assert repr(model.model_options) == options and sorted(map(str, model.object_patches)) == patches


def weights_of(network):
    """Bits of a network's weights."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def same_weights(network, before):
    """The network has these weights."""
    now = network.state_dict()
    assert now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before), "weights"
