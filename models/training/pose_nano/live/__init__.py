"""Training on a GPU with pictures that are rendered as it goes: views and targets are made where the network is."""
