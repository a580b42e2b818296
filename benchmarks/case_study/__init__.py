"""Which of Phase 1's fixes does the work: an ablation on real recordings, run by one command."""
