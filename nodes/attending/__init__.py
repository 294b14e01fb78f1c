"""Nodes and runs that act inside attention."""
