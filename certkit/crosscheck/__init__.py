"""What independent methods say of the same network: auto_LiRPA, randomised smoothing, and where all of them agree."""
