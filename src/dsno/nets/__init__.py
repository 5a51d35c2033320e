"""Backbones: networks and nothing else; none of them knows what a teacher or a student is."""
