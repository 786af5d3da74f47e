"""Training that follows a plan: the Trainer, its settings, the ledger of consumed samples, and the warm-up."""
