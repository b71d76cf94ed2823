"""A Report for people and for machines."""
