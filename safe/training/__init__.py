"""The training loop and what keeps a run safe: checkpoints, run directories, interruption."""
