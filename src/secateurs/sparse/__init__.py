"""Single weights: what each is worth, which stay, and what is gained by it."""
