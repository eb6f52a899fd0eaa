"""A silo's images: layouts on disk, datalists, decoded arrays; `phantom` draws the demo's hospitals."""
