"""From a plan to batches: which rows come at which position of a training, in constant time and memory."""
