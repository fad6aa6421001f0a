"""From trained policies to scores, figures and films."""
