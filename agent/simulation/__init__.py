"""A simulated place with people in it: motion, scripts, and the picture a camera takes of it, with exact ground truth."""
