"""What the host shows of the nodes, in the form of its translation files."""


def node_definitions(nodes, generated=()):
    """The content of locales/en/nodeDefs.json for these node classes.

    Inputs made from the settings of methods (`generated`) are left out, and shown as their methods name them: a new
    method is one file and one test.
    """
    found = {}
    for node in sorted(nodes, key=lambda each: each.define_schema().node_id):
        info = node.GET_NODE_INFO_V1()
        inputs = {}
        for group in ("required", "optional"):
            for name, (_, options) in info["input"].get(group, {}).items():
                if name not in generated:
                    inputs[name] = {"name": name, "tooltip": options["tooltip"]}
        pairs = zip(info["output_name"], info["output_tooltips"])
        found[info["name"]] = {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": inputs,
            "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(pairs)},
        }
    return found
