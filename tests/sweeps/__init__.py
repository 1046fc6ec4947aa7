"""The wide sweeps: crashes, faults, power cuts, random histories, a simulated mount; and the code that serves them."""
