"""Which criterion suits a network: correlation with the oracle, and what is left after pruning."""
