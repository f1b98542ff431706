"""The stages: photographs to faces, faces to distributions, distributions to a student."""
