"""Nodes that edit a picture or clip in one go."""
