"""The small models of the pack as nodes."""
