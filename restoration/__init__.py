"""Restoration of damaged pictures and clips with any diffusion or flow model as the prior; torch only."""
