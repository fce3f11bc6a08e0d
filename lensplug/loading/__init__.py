"""From a name, a folder or a model in memory to a lens; what cannot become one is refused."""
