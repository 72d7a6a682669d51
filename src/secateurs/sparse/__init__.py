"""Single weights: what each is worth, and which stay."""
