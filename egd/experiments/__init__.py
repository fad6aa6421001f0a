"""The experiments in the library: distributions in the plane, and images."""
