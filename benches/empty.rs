//! Nothing: the package holds benchmarks only.
