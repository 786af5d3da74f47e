"""Score, train, evaluate, run: wiring between the floors below; no arithmetic of its own."""
