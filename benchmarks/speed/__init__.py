"""What probes, training steps and commands cost, as ratios inside one run."""
