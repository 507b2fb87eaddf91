"""Students: smaller networks searched by a policy and trained by their teacher (N2N)."""
