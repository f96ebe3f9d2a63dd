"""What Muster decides in plain Python: ports, sizes, hashes, and whether an inventory makes sense."""

__version__ = "0.1.0"
