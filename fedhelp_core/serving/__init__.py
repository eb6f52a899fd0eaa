"""The model in use answers over HTTP inside the hospital, by the Open Inference Protocol, and is watched. Nothing here needs the hub."""
