"""The harness and its agent, statistics, comparison and the report."""
