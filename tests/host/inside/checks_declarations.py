"""What every node declares, whatever it does: its texts, and the check of its widgets that is made of them."""

import inspect
import re

from helpers import refuses


def _misfits(widget, io):
    """Values that a widget must refuse, and a part of the sentence for each."""
    if isinstance(widget, io.Combo.Input):
        return [("no such choice", "must be one of")]
    if isinstance(widget, io.Boolean.Input):
        return [("yes", "must be true or false")]
    if isinstance(widget, io.String.Input):
        return [(3, "must be text, got 3")]
    low, high = (f"{bound:g}" if isinstance(bound, float) else bound for bound in (widget.min, widget.max))
    below, above = (widget.min - 1, f"at least {low}, got"), (widget.max + 1, f"at most {high}, got")
    if isinstance(widget, io.Int.Input):
        return [below, above, (widget.min + 0.5, "must be a whole number"), (True, "must be a whole number")]
    return [below, above, (float("nan"), "must be finite"), ("much", "must be a number")]


def check_every_widget_is_checked(pack):
    """By one sentence that begins with its name, before anything runs and with what comes over a link."""
    from comfy_api.latest import io

    for node in pack.module("nodes").NODES:
        widgets = node.widgets()
        # What is named here the host leaves unchecked, and shows a complaint at each.
        assert inspect.getfullargspec(node.validate_inputs).args == ["cls", *node.asked()], node
        assert node.validate_inputs() is True, node
        # The host hands None for what comes over a link.
        assert node.validate_inputs(**{each.id: None for each in widgets}) is True, node
        # As it is dropped onto the canvas it passes, but for what waits for words.
        said = node.validate_inputs(**{each.id: each.default for each in widgets if each.default is not None})
        assert said is True or re.match("^words must name|^weights must name", said), (node.__name__, said)
        for widget in widgets:
            if widget.id in node.OPEN:
                continue
            for value, part in _misfits(widget, io):
                said = node.validate_inputs(**{widget.id: value})
                assert isinstance(said, str) and part in said, (node.__name__, widget.id, value, said)
                assert re.match(rf"^{widget.id} must [^\n]+, got [^\n]+; [^\n]+\.$", said), said
                refuses(lambda n=node, w=widget.id, v=value: pack.call(n.__name__, **{w: v}), said)


def check_nodes_are_found_by_themselves(pack):
    """Sorted by room and id; the room is the category, and the id the name of the class."""
    places = [(node.__module__.split(".")[-2], node.__name__) for node in pack.module("nodes").NODES]
    assert places == sorted(places) and len(places) > 40 and ("inverting", "Invert") in places
    assert not {name for _, name in places} & {"Node", "MethodNode"}
    for node, (room, name) in zip(pack.module("nodes").NODES, places):
        # The host keeps what it has read of a class, for those that derive from it too.
        outputs = [each.io_type for each in node.define_schema().outputs]
        assert node.RETURN_TYPES == outputs, (name, node.RETURN_TYPES, outputs)
        info = node.GET_NODE_INFO_V1()
        assert (info["category"], info["name"]) == (f"Retrace/{room}", name)


def check_unknown_keywords_are_dropped(pack):
    """A schema written for a newer host loads on this one."""
    from comfy_api.latest import io

    compat = pack.module("nodes.host.compat")
    made = io.Int.Input("steps", default=2, extra_dict=compat.ADVANCED)
    assert made.as_dict()["advanced"] is True
    assert compat.schema(node_id="X", inputs=[made], outputs=[], unheard_of=1).node_id == "X"
