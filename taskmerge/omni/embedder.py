"""The address that folders saved before 0.2 name, kept for `SentenceTransformer(folder, trust_remote_code=True)`."""

from taskmerge.embedders.embedder import OmniEmbedder as OmniEmbedder
