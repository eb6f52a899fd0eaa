"""Weights in safetensors files: written canonically, checked byte by byte."""
