"""Single weights: what zeros leave behind."""
