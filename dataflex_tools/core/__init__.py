"""Errors, configuration, fingerprints, plans, random streams, ranks and progress: the floor all others stand on."""
