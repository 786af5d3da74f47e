"""The scoring engine: batches, per-sample gradients and losses, written part by part."""
