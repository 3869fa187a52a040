"""How networks learn: objectives, players, the loop, checkpoints, runs."""
