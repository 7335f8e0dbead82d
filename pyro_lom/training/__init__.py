"""The training loop: phases, steps, checkpoints, run folders."""
