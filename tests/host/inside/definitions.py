"""What the host shows of the nodes, in the form of its translation files."""


def node_definitions(nodes):
    """The content of locales/en/nodeDefs.json for these node classes."""
    found = {}
    for node in sorted(nodes, key=lambda each: each.define_schema().node_id):
        info = node.GET_NODE_INFO_V1()
        inputs = {}
        for group in ("required", "optional"):
            for name, (_, options) in info["input"].get(group, {}).items():
                inputs[name] = {"name": name, "tooltip": options["tooltip"]}
        pairs = zip(info["output_name"], info["output_tooltips"])
        found[info["name"]] = {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": inputs,
            "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(pairs)},
        }
    return found
