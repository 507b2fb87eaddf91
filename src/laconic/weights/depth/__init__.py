"""Room: weights/depth. Attentions and feed-forward parts of a decoder, scored and removed."""
