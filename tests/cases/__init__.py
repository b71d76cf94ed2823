"""Troubles that users met, reduced: networks (`nets`) and files (`files`) that tests feed to the toolkit."""
