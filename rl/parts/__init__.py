"""Parts that agents are made of: the behaviour model, support actions, guided policies, actors."""
