"""One description of a workflow, written in both of the host's formats."""

from __future__ import annotations

import json
import math
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]

# Sizes of the front end's canvas, in its pixels.
TITLE = 30
SLOT = 20
WIDGET = 24
TEXT_WIDGET = 90
PREVIEW = 240
GAP = 36
COLUMN = 360
WIDTH = 300

Box = tuple[int, int, int, int]
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
_NO_DEFAULT = object()
FRONT_END_NODES = {"MarkdownNote", "Note"}
# Nodes that show a picture below their widgets.
PICTURE_NODES = {"SaveImage", "PreviewImage"}
# Nodes that show a text below their widgets.
TEXT_NODES = {
    "InversionReport": 200,
    "NullTextOptimize": 200,
    "NoiseOptimize": 200,
    "SaveInversion": 60,
    "RestoreReport": 120,
    "PreviewAny": 120,
}


class Link(NamedTuple):
    """An output of a node."""

    node: Node
    slot: int


@dataclass(eq=False)
class Node:
    """A node of a workflow; `node[slot]` is an output of it."""

    number: int
    kind: str
    title: str | None
    column: int
    inputs: dict[str, Any]
    width: int = WIDTH

    def __getitem__(self, slot: int) -> Link:
        return Link(self, slot)


@dataclass
class Graph:
    """A workflow: nodes stacked in columns, groups of columns, and one note that explains it."""

    name: str
    nodes: list[Node] = field(default_factory=list)
    groups: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    @property
    def note(self) -> str:
        """The explanation beside the nodes, from notes/<name>.md."""
        return (Path(__file__).parent / "notes" / f"{self.name}.md").read_text(encoding="utf-8")

    def add(self, kind: str, column: int, title: str | None = None, /, **inputs: Any) -> Node:
        """Add a node below the others of its column.

        An input is a `Link`, a node, which stands for its first output, or a widget's value.
        """
        links = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
        node = Node(len(self.nodes) + 1, kind, title, column, links)
        self.nodes.append(node)
        return node

    def to_api(self, info: dict[str, Any]) -> dict[str, Any]:
        """The workflow as POST /prompt takes it."""
        prompt = {}
        for node in self.nodes:
            unknown = set(node.inputs) - {name for name, _ in declared(info[node.kind])}
            if unknown:
                raise ValueError(f"inputs of {node.kind} must be declared, got {sorted(unknown)}; correct it.")
            inputs = {}
            for name, spec in written(info[node.kind], node.inputs):
                value = node.inputs.get(name)
                if isinstance(value, Link):
                    inputs[name] = [str(value.node.number), value.slot]
                elif is_widget(spec):
                    inputs[name] = default_of(spec) if value is None else value
            about = {"title": title_of(node, info[node.kind])}
            prompt[str(node.number)] = {"inputs": inputs, "class_type": node.kind, "_meta": about}
        return prompt

    def to_ui(self, info: dict[str, Any]) -> dict[str, Any]:
        """The workflow as the front end saves it."""
        links: list[list[Any]] = []
        outgoing: dict[tuple[int, int], list[int]] = {}
        slots: dict[int, list[dict[str, Any]]] = {}
        for node in self.nodes:
            entries = slots[node.number] = []
            for name, spec in socket_order(written(info[node.kind], node.inputs)):
                entry: dict[str, Any] = {"name": name, "type": type_of(spec), "link": None}
                if is_widget(spec):
                    entry["widget"] = {"name": name}
                value = node.inputs.get(name)
                if isinstance(value, Link):
                    entry["link"] = len(links) + 1
                    output = shown_type(info[value.node.kind]["output"][value.slot])
                    links.append([entry["link"], value.node.number, value.slot, node.number, len(entries), output])
                    outgoing.setdefault((value.node.number, value.slot), []).append(entry["link"])
                entries.append(entry)
        placed, boxes = self._place(info)
        nodes = []
        for order, node in enumerate(self.nodes):
            about, box = info[node.kind], placed[node.number]
            outputs = [
                dict(name=name, type=shown_type(kind), slot_index=slot, links=outgoing.get((node.number, slot)))
                for slot, (name, kind) in enumerate(outputs_of(about))
            ]
            entry = dict(id=node.number, type=node.kind, pos=list(box[:2]), size=list(box[2:]), flags={}, order=order)
            entry |= dict(mode=0, inputs=slots[node.number], outputs=outputs, title=title_of(node, about))
            entry |= dict(properties={"Node name for S&R": node.kind, **origin(about)})
            nodes.append(entry | dict(widgets_values=self._widgets(node, about)))
        nodes.append(self._note_node(len(nodes)))
        groups = [
            dict(id=i + 1, title=title, bounding=frame(boxes, columns), color="#3f789e", flags={})
            for i, (title, columns) in enumerate(self.groups)
        ]
        number = str(uuid.uuid5(uuid.NAMESPACE_URL, f"retrace/workflows/{self.name}"))
        whole = dict(id=number, revision=0, last_node_id=len(nodes), last_link_id=len(links), nodes=nodes, links=links)
        look = {"ds": {"scale": 0.6, "offset": [540, 200]}}
        return whole | dict(groups=groups, config={}, extra=look, version=0.4)

    def _widgets(self, node: Node, about: dict[str, Any]) -> list[Any]:
        values = []
        for name, spec in written(about, node.inputs):
            if not is_widget(spec):
                continue
            value = node.inputs.get(name)
            values.append(default_of(spec) if value is None or isinstance(value, Link) else value)
            if has_control(name, spec):
                values.append("fixed")
        return values

    def _note_node(self, order: int) -> dict[str, Any]:
        lines = sum(max(1, math.ceil(len(line) / 60)) for line in self.note.splitlines())
        return dict(
            id=order + 1, type="MarkdownNote", pos=[-440, 0], size=[400, 60 + 20 * lines], flags={}, order=order,
            mode=0, inputs=[], outputs=[], title="What this shows", properties={}, widgets_values=[self.note],
            color="#432", bgcolor="#653",
        )  # fmt: skip

    def _place(self, info: dict[str, Any]) -> tuple[dict[int, Box], list[tuple[int, Box]]]:
        below: dict[int, int] = {}
        placed, boxes = {}, []
        for node in self.nodes:
            y = below.get(node.column, 0)
            box = (node.column * COLUMN, y, node.width, height_of(node, info[node.kind]))
            below[node.column] = y + box[3] + TITLE + GAP
            placed[node.number] = box
            boxes.append((node.column, box))
        return placed, boxes


def declared(about: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """Inputs of a node in the order of /object_info, without the hidden ones."""
    order = about["input_order"]
    return [(name, about["input"][part][name]) for part in ("required", "optional") for name in order.get(part, [])]


def is_setting(name: str, about: dict[str, Any]) -> bool:
    """Whether an optional input is a setting of one method, named <method>_<setting>."""
    spec = about["input"]["required"].get("method")
    options = [] if spec is None else options_of(spec).get("options", [])
    return name in about["input"].get("optional", {}) and any(name.startswith(f"{option}_") for option in options)


def written(about: dict[str, Any], given: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """The inputs that a template writes down.

    Settings of methods come last and have defaults. One that is not given is left out, so that a new method does not
    change the templates.
    """
    return [(name, spec) for name, spec in declared(about) if name in given or not is_setting(name, about)]


def without_defaults(prompt: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """A prompt of the front end, which fills in every widget, without the settings that have their default."""
    kept = {}
    for number, node in prompt.items():
        about = info[node["class_type"]]
        default = {name: default_of(spec) for name, spec in declared(about) if is_setting(name, about)}
        inputs = {name: value for name, value in node["inputs"].items() if default.get(name, _NO_DEFAULT) != value}
        kept[number] = {**node, "inputs": inputs}
    return kept


def socket_order(inputs: list[tuple[str, list[Any]]]) -> list[tuple[str, list[Any]]]:
    """Inputs in the front end's order: those without a widget come first."""
    return sorted(inputs, key=lambda item: is_widget(item[1]))


def options_of(spec: list[Any]) -> dict[str, Any]:
    """The options of an input, {} without any."""
    return spec[1] if len(spec) > 1 else {}


def type_of(spec: list[Any]) -> str:
    """The type of an input."""
    return shown_type(spec[0])


def shown_type(kind: Any) -> str:
    """The name of a type; a bare list of choices is COMBO."""
    return "COMBO" if isinstance(kind, list) else str(kind)


def is_widget(spec: list[Any]) -> bool:
    """Whether the front end draws an input as a widget."""
    return type_of(spec) in WIDGET_TYPES and not options_of(spec).get("forceInput")


def has_control(name: str, spec: list[Any]) -> bool:
    """Whether a control_after_generate widget follows: declared, or an integer of one of the two known names."""
    if type_of(spec) != "INT":
        return False
    return bool(options_of(spec).get("control_after_generate")) or name in ("seed", "noise_seed")


def default_of(spec: list[Any]) -> Any:
    """The value that a new node starts with."""
    options = options_of(spec)
    if "default" in options:
        return options["default"]
    if type_of(spec) == "COMBO":
        return (spec[0] if isinstance(spec[0], list) else options["options"])[0]
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}[type_of(spec)]


def is_ours(about: dict[str, Any]) -> bool:
    """Whether a node comes from a pack and not from the host."""
    return str(about["python_module"]).startswith("custom_nodes.")


def title_of(node: Node, about: dict[str, Any]) -> str:
    """The title of a node; not the host's display name, which changes between its versions."""
    if node.title is None and not is_ours(about):
        return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", node.kind)
    return node.title or str(about["display_name"])


def outputs_of(about: dict[str, Any]) -> list[tuple[str, Any]]:
    """Name and type of each output; newer hosts pass pictures on from their output nodes, which no template uses."""
    if about["output_node"] and not is_ours(about):
        return []
    return list(zip(about["output_name"], about["output"], strict=True))


def origin(about: dict[str, Any]) -> dict[str, str]:
    """The registry's name and version of the pack that a node comes from."""
    if is_ours(about):
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        found = {key: re.search(rf'^{key} = "(.+)"$', project, re.M) for key in ("name", "version")}
        return {"cnr_id": found["name"][1], "ver": found["version"][1]}  # type: ignore[index]
    return {"cnr_id": "comfy-core", "ver": "0.8.0"}


def height_of(node: Node, about: dict[str, Any]) -> int:
    """Height below the title bar that the front end needs at least."""
    specs = written(about, node.inputs)
    sockets = max(sum(not is_widget(spec) for _, spec in specs), len(outputs_of(about)))
    height = 10 + sockets * SLOT
    for name, spec in specs:
        if is_widget(spec):
            height += TEXT_WIDGET if options_of(spec).get("multiline") else WIDGET
            height += WIDGET if has_control(name, spec) else 0
    # Settings of methods are not written into a template; the front end adds a row for each.
    height += (len(declared(about)) - len(specs)) * WIDGET
    if node.kind in PICTURE_NODES:
        height += PREVIEW
    return height + TEXT_NODES.get(node.kind, 0)


def frame(boxes: list[tuple[int, Box]], columns: tuple[int, ...]) -> list[int]:
    """Bounding box [x, y, width, height] of the nodes in some columns, with room for the group's title."""
    inside = [box for column, box in boxes if column in columns]
    left = min(box[0] for box in inside) - 14
    top = min(box[1] for box in inside) - TITLE - 50
    right = max(box[0] + box[2] for box in inside) + 14
    bottom = max(box[1] + box[3] for box in inside) + 14
    return [left, top, right - left, bottom - top]


def api_from_ui(ui: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Convert the front end's format to the API format, as the front end itself does.

    Widget values are positional there: this reads them in the order of /object_info, past the extra value of
    control_after_generate.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in ui["links"]}
    prompt = {}
    for node in ui["nodes"]:
        if node["type"] in FRONT_END_NODES:
            continue
        about = info[node["type"]]
        values = list(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for name, spec in declared(about):
            if not is_widget(spec):
                continue
            if not values and is_setting(name, about):
                break
            inputs[name] = values.pop(0)
            if has_control(name, spec):
                values.pop(0)
        if values:
            raise ValueError(f"widgets_values of {node['type']} must fit its widgets, got {len(values)} too many.")
        for entry in node["inputs"]:
            if entry["link"] is not None:
                inputs[entry["name"]] = sources[entry["link"]]
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": node["title"]}}
    return prompt


def dump(data: dict[str, Any]) -> str:
    """JSON as it lies in the repository: each node, link and group is one line, so that a change shows as one."""
    entries = []
    for key, value in data.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in value) + "\n]"
        entries.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"
