"""Sub-commands of `recognizer-fleet`."""
