"""The proof suite's machinery: a table of operations, and the sweeps that crash and fault each of them."""
