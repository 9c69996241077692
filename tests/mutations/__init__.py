"""Seeded ways to damage data files and job documents; a mutation is a pure function of its dice."""
