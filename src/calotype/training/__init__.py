"""Training: objectives, train states, the loop, hooks, checkpoints, and the pipeline of all legs of a run."""
