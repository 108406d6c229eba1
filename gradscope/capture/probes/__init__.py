"""Measurements on demand: snapshot, spectrum, source and target, what a clip would do."""
