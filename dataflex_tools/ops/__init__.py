"""Array maths shared by scoring and methods: Adam directions and random projections."""
