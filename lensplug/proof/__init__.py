"""The proof of a core on load: what a wrapped core computes, checked against this very model before it is used."""
