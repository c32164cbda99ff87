"""Studies on several machines: Dask places the steps; see docs/cluster.md."""
