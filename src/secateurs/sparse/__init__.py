"""Single weights: what each is worth, which stay, and what zeros leave behind."""
