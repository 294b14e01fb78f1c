"""Inputs of the restore samplers at their defaults, for checks that change one or two."""

DDS = {
    "trust": 1.0,
    "freshness": 0.85,
    "latent_method": "encoder adjoint",
    "inner_steps": 1,
    "temporal_smoothing": 0.0,
    "share_noise": False,
}
GUIDED = {"measurement_weight": 1.0, "gluing": 0.1, "inner_steps": 1, "curvature": 0.0, "start_from_photo": False}
