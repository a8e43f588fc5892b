"""Sends the epochs of a run to experiment trackers, such as TensorBoard, while it goes on."""
