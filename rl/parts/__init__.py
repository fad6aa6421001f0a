"""Parts that agents consist of: behaviour models, critics, support actions, calibration, guided policies, actors."""
