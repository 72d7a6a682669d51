"""Data that the command line reads by itself: MNIST and folders of images."""
