"""Training of `pose-nano`, a small one-stage multi-person pose estimator; see README.md beside this file."""
