"""A task's mathematics, passed into the algorithm: classification, segmentation."""
