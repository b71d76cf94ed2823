"""What is learnt from images before a graph is given fewer bits: the sets, their hygiene, and the ranges of a graph."""
