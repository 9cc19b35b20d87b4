"""Workloads, the harness, statistics, comparison and the report."""
