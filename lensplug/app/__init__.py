"""The command line, and the report that it writes."""
