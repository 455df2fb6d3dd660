//! `memload`: memory workloads with latency histograms.

fn main() {}
