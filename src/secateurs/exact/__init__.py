"""The engine of the oracle: what happens to the loss when one unit goes, for every unit."""
