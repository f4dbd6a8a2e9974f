"""Vision-language models, in a folder of weights or behind an endpoint, and how they are asked."""
