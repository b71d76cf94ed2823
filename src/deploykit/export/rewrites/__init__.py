"""Exact rewrites of graphs, one file each; `deploykit.export.rewrite` lists and runs them."""
