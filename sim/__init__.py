"""Golden model, cycle model and simulated board."""
