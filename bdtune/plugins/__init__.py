"""The contracts that plugins fill, and the values that they are handed."""
