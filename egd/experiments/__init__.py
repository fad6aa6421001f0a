"""The experiments that come with the library: distributions in the plane, and images."""
