"""The whole story on real weights in minutes: two specialists fused, the drift found, repaired, rehearsed."""
