"""Solvers of inverse problems: a picture that a model finds likely and that explains a measurement."""
