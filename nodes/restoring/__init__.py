"""Nodes that restore damaged pictures and clips."""
